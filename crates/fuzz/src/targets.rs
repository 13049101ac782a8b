//! The targets.

use crate::Target;
use serde_json::{Value, json};
use skeg_api::decode::{self, Encoding, FieldValidation};
use skeg_api::fieldset::{self, Apply, Tracking};
use skeg_api::jsonpath::JsonPath;
use skeg_api::quantity::Quantity;
use skeg_api::selector::{FieldSelector, LabelSelector};
use skeg_api::{Gvk, Kind, builtin, crd, patch};
use skeg_apiserver::list::{Token, parse_revision};
use skeg_apiserver::negotiate::{Offer, Output};
use skeg_apiserver::{protobuf, query};
use skeg_base::Timestamp;
use std::collections::BTreeMap;
use std::sync::LazyLock;

mod certificates;
mod requests;

const POD: &[u8] = br#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a","namespace":"default","labels":{"app":"a"},"creationTimestamp":"2026-01-02T03:04:05Z"},"spec":{"containers":[{"name":"c","image":"nginx","args":["a"],"ports":[{"containerPort":80,"protocol":"TCP"}],"resources":{"limits":{"cpu":"100m","memory":"1Gi"}}}],"volumes":[{"name":"v","emptyDir":{}}],"nodeSelector":{"a":"b"}},"status":{"phase":"Running"}}"#;

pub const TARGETS: &[Target] = &[
    Target {
        name: "json",
        run: json,
        seeds: &[
            POD,
            br#"{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"a","annotations":{"a":"b"}},"spec":{"replicas":2,"selector":{"matchLabels":{"a":"b"},"matchExpressions":[{"key":"a","operator":"In","values":["b"]}]},"strategy":{"rollingUpdate":{"maxSurge":"25%","maxUnavailable":0}},"template":{"metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"name":"c","image":"i","livenessProbe":{"httpGet":{"port":"p"}},"env":[{"name":"E","valueFrom":{"fieldRef":{"fieldPath":"metadata.name"}}}]}],"affinity":{"nodeAffinity":{"requiredDuringSchedulingIgnoredDuringExecution":{"nodeSelectorTerms":[{"matchExpressions":[{"key":"a","operator":"Gt","values":["1"]}]}]}}},"topologySpreadConstraints":[{"maxSkew":1,"topologyKey":"k","whenUnsatisfiable":"DoNotSchedule"}]}}}}"#,
            br#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"a"},"spec":{"type":"NodePort","ports":[{"name":"p","port":80,"targetPort":"http","nodePort":30000}],"clusterIP":"10.0.0.1","clusterIPs":["10.0.0.1"],"ipFamilies":["IPv4"],"sessionAffinityConfig":{"clientIP":{"timeoutSeconds":1}},"loadBalancerSourceRanges":["10.0.0.0/8"]}}"#,
            br#"{"apiVersion":"autoscaling/v2","kind":"HorizontalPodAutoscaler","metadata":{"name":"a"},"spec":{"maxReplicas":3,"scaleTargetRef":{"kind":"Deployment","name":"a","apiVersion":"apps/v1"},"metrics":[{"type":"Resource","resource":{"name":"cpu","target":{"type":"Utilization","averageUtilization":50}}}],"behavior":{"scaleUp":{"policies":[{"type":"Pods","value":1,"periodSeconds":5}]}}}}"#,
            br#"{"apiVersion":"batch/v1","kind":"CronJob","metadata":{"name":"a"},"spec":{"schedule":"*/5 1-3 * JAN MON","timeZone":"Etc/UTC","jobTemplate":{"spec":{"completionMode":"Indexed","completions":2,"podFailurePolicy":{"rules":[{"action":"Ignore","onExitCodes":{"operator":"In","values":[1]}}]},"template":{"spec":{"restartPolicy":"Never","containers":[{"name":"c","image":"i"}]}}}}}}"#,
            br#"{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"a"},"spec":{"podSelector":{},"policyTypes":["Egress"],"egress":[{"to":[{"ipBlock":{"cidr":"10.0.0.0/8","except":["10.1.0.0/16"]}}],"ports":[{"port":1,"endPort":2}]}]}}"#,
            br#"{"apiVersion":"admissionregistration.k8s.io/v1","kind":"ValidatingAdmissionPolicy","metadata":{"name":"a"},"spec":{"matchConstraints":{"resourceRules":[{"apiGroups":["*"],"apiVersions":["v1"],"resources":["pods/*"],"operations":["CREATE"]}]},"variables":[{"name":"v","expression":"object.a"}],"validations":[{"expression":"variables.v > 1","messageExpression":"'a'"}]}}"#,
            br#"{"apiVersion":"v1","kind":"PersistentVolumeClaim","metadata":{"name":"a","managedFields":[{"manager":"m","operation":"Update","fieldsType":"FieldsV1","fieldsV1":{"f:spec":{}}}],"ownerReferences":[{"apiVersion":"v1","kind":"A","name":"a","uid":"u"}]},"spec":{"accessModes":["ReadWriteOnce"],"resources":{"requests":{"storage":"1Gi"}},"selector":{"matchLabels":{"a":"b"}}}}"#,
            br#"{"a":{"a":1,"a":2.5e-7},"b":[[[null,true]]],"c":"\ud83d\ude00\u0000"}"#,
        ],
    },
    Target {
        name: "yaml",
        run: yaml,
        seeds: &[
            b"apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\nspec:\n  containers:\n  - {name: c, image: nginx}\n",
            b"a: &a [x, x, x]\nb: &b [*a, *a, *a]\nc: [*b, *b, *b]\n<<: {d: 1}\n",
            b"a: |\n  text\n  more\nb: >-\n  folded\nc: !!binary YQ==\nd: 0x1F\ne: 1_000\nf: ~\ng: 2026-01-02\n? h\n: 'i'\n---\nj: 1\n",
            // Each line nine times the one before.
            b"a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: [*c,*c,*c,*c,*c,*c,*c,*c,*c]\n",
            b"a: &a {k: &b {l: m}}\nb: &c {<<: *a, n: {<<: [*a, *b]}}\n<<: [*c, *a]\n",
        ],
    },
    Target {
        name: "protobuf",
        run: of_protobuf,
        seeds: &[
            // Kinds are told by the first byte, or by the envelope.
            b"\0k8s\0\n\t\n\x02v1\x12\x03Pod\x12\x1e\n\x0f\n\x01a\x12\0\x1a\x07default\x12\x0b\x12\t\n\x01c\x12\x04nginx\x1a\0\"\0",
            b"\x01k8s\0\n\0\x12\x12\n\x0c\n\x01a\x12\x07default\x12\0\x1a\0",
            b"\x10k8s\0\n\x19\n\x07apps/v1\x12\nDeployment\x12\x0b\n\x03\n\x01a\x12\x04\x08\x02\x1a\0\x1a\0\"\0",
        ],
    },
    Target {
        name: "json-patch",
        run: json_patch,
        seeds: &[
            b"{\"a\":{\"b\":[1,2,{\"c\":null}]},\"x/y\":1}\n[{\"op\":\"add\",\"path\":\"/a/b/-\",\"value\":3},{\"op\":\"remove\",\"path\":\"/a/b/0\"}]",
            b"{\"a\":[1],\"b\":{}}\n[{\"op\":\"copy\",\"from\":\"/a\",\"path\":\"/a/-\"},{\"op\":\"move\",\"from\":\"/a/0\",\"path\":\"/b/c\"},{\"op\":\"test\",\"path\":\"/b/c\",\"value\":1},{\"op\":\"replace\",\"path\":\"/x~1y\",\"value\":{}}]",
        ],
    },
    Target {
        name: "merge-patch",
        run: merge_patch,
        seeds: &[
            b"{\"a\":{\"b\":1,\"c\":[1]},\"d\":null}\n{\"a\":{\"b\":null,\"c\":{\"e\":null}},\"d\":{\"f\":{\"g\":null}}}",
        ],
    },
    Target { name: "strategic-merge-patch", run: strategic_merge_patch, seeds: STRATEGIC },
    Target { name: "apply", run: apply, seeds: STRATEGIC },
    Target {
        name: "label-selector",
        run: label_selector,
        seeds: &[b"app=a,b!=c,d in (e,f,),g notin (h),!i,j,k==l,m>1,n<2", b"example.com/a in (b), c"],
    },
    Target {
        name: "field-selector",
        run: field_selector,
        seeds: &[b"metadata.name=a,status.phase!=Running,spec.nodeName==b", b"a=b\\,c,d=\\\\e\\=f"],
    },
    Target {
        name: "quantity",
        run: quantity,
        seeds: &[b"100m 1.5Gi", b"-12e3 +.5k", b"9223372036854775807 1E18", b"0.000000001n 3u", b"8Ei -1Ki"],
    },
    Target {
        name: "cel",
        run: cel,
        seeds: &[
            b"self.a.all(x, x < 10) && self.s.matches('^[a-z]+$') || size(self.m) > 1 ? 'a' + string(1) : b'c'.size() == 1 ? \"x\" : 'y'\n{\"a\":[1,2],\"s\":\"ab\",\"m\":{\"k\":1}}",
            b"self.a.map(x, self.a.map(y, x + y)).exists(l, l.sum() > 3)\n{\"a\":[1,2,3,4,5,6,7,8]}",
            b"quantity('1Gi').isGreaterThan(quantity('1')) && ip('10.0.0.1').family() == 4 && duration('1h') > duration('60s') && 'a,b'.split(',').join('-').replace('a', 'b').lowerAscii().find('[0-9]+') == ''\n{}",
            b"cel.bind(x, self.?a.orValue([1]), x.filter(y, y % 2 == 0)).isSorted() && type(self) == map && has(self.a) && dyn(1u) in [2u, 3u] && timestamp('2026-01-02T03:04:05Z').getFullYear() == 2026\n{\"a\":[2]}",
        ],
    },
    Target {
        name: "crd",
        run: crd,
        seeds: &[
            b"{\"type\":\"object\",\"properties\":{\"spec\":{\"type\":\"object\",\"required\":[\"a\"],\"properties\":{\"a\":{\"type\":\"string\",\"default\":\"x\",\"pattern\":\"^[a-z]*$\",\"maxLength\":3},\"l\":{\"type\":\"array\",\"x-kubernetes-list-type\":\"map\",\"x-kubernetes-list-map-keys\":[\"k\"],\"items\":{\"type\":\"object\",\"required\":[\"k\"],\"properties\":{\"k\":{\"type\":\"string\"},\"n\":{\"x-kubernetes-int-or-string\":true}}}}}}}}\n{\"spec\":{\"l\":[{\"k\":\"a\",\"n\":1},{\"k\":\"a\"}],\"z\":1}}",
            b"{\"type\":\"object\",\"x-kubernetes-preserve-unknown-fields\":true,\"properties\":{\"e\":{\"type\":\"object\",\"x-kubernetes-embedded-resource\":true,\"nullable\":true},\"m\":{\"type\":\"object\",\"additionalProperties\":{\"type\":\"integer\",\"minimum\":1,\"multipleOf\":2}},\"o\":{\"type\":\"number\",\"oneOf\":[{\"enum\":[1,2]},{\"not\":{\"maximum\":5}}]}},\"x-kubernetes-validations\":[{\"rule\":\"!has(self.m) || self.m.size() < 3\",\"messageExpression\":\"'m'\"},{\"rule\":\"self.o >= oldSelf.o\"}]}\n{\"e\":{\"apiVersion\":\"v1\",\"kind\":\"A\"},\"m\":{\"a\":4},\"o\":7}",
        ],
    },
    Target {
        name: "jsonpath",
        run: jsonpath,
        seeds: &[b".spec.a[0].b", b"{.a['b.c'][*].d}", b"$.a[?(@.b==\"c\")].d[-1:]", b".a..b[1,2]"],
    },
    Target {
        name: "query",
        run: of_query,
        seeds: &[
            b"limit=5&continue=eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6MSwic3RhcnQiOiJhXHUwMDAwIn0&resourceVersion=10&timeoutSeconds=1",
            b"a=%41+b&a=%zz&watch=1&sendInitialEvents=true&timeout=1h30m",
        ],
    },
    Target {
        name: "accept",
        run: accept,
        seeds: &[
            b"application/json;as=Table;v=v1;g=meta.k8s.io,application/json;q=0.5, */*",
            b"application/vnd.kubernetes.protobuf, application/yaml;q=0",
        ],
    },
    Target { name: "certificate", run: certificates::certificate, seeds: certificates::SEEDS },
    Target { name: "url", run: requests::url, seeds: requests::SEEDS },
];

const STRATEGIC: &[&[u8]] = &[
    b"{\"metadata\":{\"labels\":{\"a\":\"b\"},\"finalizers\":[\"a/b\",\"c/d\"]},\"spec\":{\"containers\":[{\"name\":\"a\",\"image\":\"x\",\"ports\":[{\"containerPort\":80}]},{\"name\":\"b\"}],\"tolerations\":[{\"key\":\"a\"}]}}\n{\"metadata\":{\"$deleteFromPrimitiveList/finalizers\":[\"a/b\"]},\"spec\":{\"$setElementOrder/containers\":[{\"name\":\"b\"},{\"name\":\"a\"}],\"containers\":[{\"name\":\"a\",\"$patch\":\"delete\"},{\"name\":\"c\",\"image\":\"y\"}],\"$retainKeys\":[\"containers\"]}}",
    b"{\"spec\":{\"volumes\":[{\"name\":\"a\",\"emptyDir\":{}}],\"containers\":[{\"name\":\"a\",\"env\":[{\"name\":\"E\",\"value\":\"1\"}]}]}}\n{\"spec\":{\"volumes\":[{\"name\":\"a\",\"$retainKeys\":[\"name\",\"hostPath\"],\"hostPath\":{\"path\":\"/\"}},{\"$patch\":\"replace\"}],\"containers\":[{\"name\":\"a\",\"env\":[{\"name\":\"E\",\"valueFrom\":null}]}]}}",
    b"{\"spec\":{}}\n{\"spec\":{\"volumes\":[]}}",
];

static KINDS: LazyLock<Vec<Kind>> =
    LazyLock::new(|| builtin::builtin().into_iter().chain(builtin::subresource_kinds()).collect());
static POD_KIND: LazyLock<&Kind> = LazyLock::new(|| of_kind("Pod"));
static DEFINITION_KIND: LazyLock<&Kind> = LazyLock::new(|| of_kind("CustomResourceDefinition"));

fn of_kind(name: &str) -> &'static Kind {
    KINDS.iter().find(|kind| &*kind.gvk.kind == name).unwrap()
}

/// The kind that an object says it is, or else a Pod.
fn kind_of(object: &Value) -> &'static Kind {
    let text = |name: &str| object.get(name).and_then(Value::as_str).unwrap_or_default();
    let is = |kind: &&Kind| &*kind.gvk.kind == text("kind") && kind.gvk.api_version() == text("apiVersion");
    KINDS.iter().find(is).unwrap_or(*POD_KIND)
}

/// Two JSON documents, a line each.
fn two(data: &[u8]) -> Option<(Value, Value)> {
    let at = data.iter().position(|byte| *byte == b'\n')?;
    Some((serde_json::from_slice(&data[..at]).ok()?, serde_json::from_slice(&data[at + 1..]).ok()?))
}

/// What is read is read again as the same from what is written of it; every mode of field validation
/// comes to an end.
fn json(data: &[u8]) {
    let Ok(decoded) = decode::decode_json(data) else { return };
    let text = serde_json::to_vec(&decoded.value).unwrap();
    let again = decode::decode_json(&text).unwrap();
    assert!(again.value == decoded.value && again.duplicates.is_empty());
    // But for what is no Unicode in its strings, which is replaced.
    let text = String::from_utf8_lossy(data);
    assert!(serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok(), "taken, and no JSON");
    object(data, Encoding::Json, kind_of(&decoded.value));
}

fn yaml(data: &[u8]) {
    let Ok(decoded) = decode::decode_yaml(data) else { return };
    let text = serde_json::to_vec(&decoded.value).unwrap();
    assert_eq!(decode::decode_json(&text).unwrap().value, decoded.value);
    object(data, Encoding::Yaml, kind_of(&decoded.value));
}

/// A body as that of a kind: what passes strictly has nothing to complain of, and its defaults and
/// validation come to an end.
fn object(data: &[u8], encoding: Encoding, kind: &Kind) {
    for validation in [FieldValidation::Ignore, FieldValidation::Warn, FieldValidation::Strict] {
        let read = decode::decode_object(data, encoding, &kind.gvk, &kind.schema, validation);
        let Ok(mut object) = read else { continue };
        assert!(validation == FieldValidation::Warn || object.warnings.is_empty());
        kind.default(&mut object.value);
        let once = object.value.clone();
        kind.default(&mut object.value);
        assert_eq!(object.value, once, "defaults are filled in once");
        if validation == FieldValidation::Ignore {
            written(object.value, kind);
        }
    }
}

/// What a create and an update ask of a kind.
fn written(mut new: Value, kind: &Kind) {
    let (strategy, old) = (&kind.strategy, new.clone());
    (strategy.prepare_create)(&mut new);
    (strategy.validate)(&new);
    (strategy.validate_create)(&new);
    (strategy.warnings)(&new, None);
    for (prepare, validate) in [
        (strategy.prepare_update, strategy.validate_update),
        (strategy.prepare_status, strategy.validate_status),
        (strategy.prepare_approval, strategy.validate_approval),
    ] {
        let mut new = new.clone();
        prepare(&mut new, &old);
        validate(&new, &old);
    }
    (strategy.warnings)(&new, Some(&old));
    kind.selectable(&new);
}

/// What is read is written and read again as the same, and is an object like others. The first byte
/// chooses the kind.
fn of_protobuf(data: &[u8]) {
    let Some((first, data)) = data.split_first() else { return };
    let kind = match first {
        0 => *POD_KIND,
        n => &KINDS[usize::from(*n) % KINDS.len()],
    };
    let Ok(text) = protobuf::body_to_json(data, &kind.gvk) else { return };
    let value: Value = serde_json::from_slice(&text).unwrap();
    let bytes = protobuf::encode(&value).unwrap();
    let again: Value = serde_json::from_slice(&protobuf::body_to_json(&bytes, &kind.gvk).unwrap()).unwrap();
    assert_eq!(again, value);
    object(&text, Encoding::Json, kind_of(&value));
}

fn json_patch(data: &[u8]) {
    let Some((mut document, patch)) = two(data) else { return };
    let before = document.to_string().len();
    if patch::json_patch(&mut document, &patch).is_ok() {
        assert!(decode::depth(&document) <= decode::DEPTH_MAX);
        // Only copies make more of it than was sent, and these have a limit of their own.
        assert!(document.to_string().len() <= before + 2 * data.len() + (3 << 20));
    }
}

fn merge_patch(data: &[u8]) {
    let Some((mut document, patch)) = two(data) else { return };
    if patch::merge_patch(&mut document, patch.clone()).is_ok() {
        let once = document.clone();
        patch::merge_patch(&mut document, patch).unwrap();
        assert_eq!(document, once);
    }
}

fn strategic_merge_patch(data: &[u8]) {
    let Some((mut document, patch)) = two(data) else { return };
    let schema = POD_KIND.schema.root();
    if patch::strategic_merge_patch(&mut document, patch, schema).is_ok() {
        assert!(document.is_object());
    }
}

/// Who applies the same again changes nothing.
fn apply(data: &[u8]) {
    let Some((live, mut config)) = two(data) else { return };
    let kind = *POD_KIND;
    let schema = kind.schema.root();
    let (Some(fields), true) = (config.as_object_mut(), live.is_object()) else { return };
    fields.insert("apiVersion".into(), "v1".into());
    fields.insert("kind".into(), "Pod".into());
    let tracking = Tracking {
        manager: "m",
        api_version: "v1",
        subresource: "",
        now: Timestamp::UNIX_EPOCH,
        ignored: &["status"],
    };
    let request = Apply { tracking, kind: &kind.gvk, force: true };
    // What is stored fits its type.
    let mut live = live;
    if decode::check(&kind.schema, &mut live).is_err() {
        return;
    }
    let Ok(once) = fieldset::apply(Some(&live), &config, &request, schema) else { return };
    // Who owns nothing (that of an empty list is nothing) is not remembered, as upstream; what is there
    // belongs to nobody when the next apply comes.
    if once["metadata"]["managedFields"].is_null() {
        return;
    }
    assert_eq!(fieldset::apply(Some(&once), &config, &request, schema).unwrap(), once);
}

fn label_selector(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(selector) = LabelSelector::parse(text) else { return };
    let shown = selector.to_string();
    // A set of the empty value alone is shown as `()`, which is none, as upstream shows it.
    if shown.contains("()") {
        return;
    }
    let again = LabelSelector::parse(&shown).unwrap();
    assert_eq!(again.to_string(), shown);
    for labels in [json!({}), json!({"app": "a", "d": "e", "j": "1", "m": "2"}), json!({"b": "c", "i": ""})] {
        let labels: BTreeMap<String, String> = serde_json::from_value(labels).unwrap();
        assert_eq!(selector.matches(&labels), again.matches(&labels));
        assert_eq!(selector.matches(&labels), selector.requirements().iter().all(|one| one.matches(&labels)));
    }
}

fn field_selector(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(selector) = FieldSelector::parse(text) else { return };
    // Terms are ordered by how they are spelled.
    let of = |selector: &FieldSelector| {
        let one = |r: &skeg_api::selector::FieldRequirement| (r.field.clone(), r.value.clone(), r.equal);
        let mut all: Vec<_> = selector.requirements.iter().map(one).collect();
        all.sort();
        all
    };
    let again = FieldSelector::parse(&selector.to_string()).unwrap();
    assert_eq!(of(&again), of(&selector));
    assert_eq!(selector.matches(|_| Some("Running")), again.matches(|_| Some("Running")));
}

/// Two amounts. The canonical form has the same value, and is its own; order and sums agree.
fn quantity(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (one, other) = text.split_once(' ').unwrap_or((text, text));
    let (Ok(one), Ok(other)) = (one.parse::<Quantity>(), other.parse::<Quantity>()) else { return };
    for quantity in [one, other, -one] {
        let shown = quantity.to_string();
        let again: Quantity = shown.parse().unwrap();
        assert_eq!(again.to_string(), shown);
        assert!(again == quantity, "{text} became {shown}");
    }
    assert_eq!(one.cmp(&other), other.cmp(&one).reverse());
    // Beyond this they saturate, binary amounts before the decimal ones.
    if one.as_f64().abs().max(other.as_f64().abs()) > 1e18 {
        return;
    }
    let sum = one + other;
    assert!(sum == other + one && sum - other == one && sum - one == other && -(-one) == one);
    assert_eq!(sum.cmp(&one), other.cmp(&Quantity::ZERO));
    assert!(sum.to_string().parse::<Quantity>().unwrap() == sum);
    assert_eq!(one.cmp(&other), (one - other).sign().cmp(&0));
    assert!(one.units() == i64::MAX || (Quantity::from_units(one.units()) - one).as_f64().abs() < 1.0);
}

/// An expression over `self`. Costs stay within their limit; time and memory are the driver's to watch.
fn cel(data: &[u8]) {
    let at = data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len());
    let Ok(text) = std::str::from_utf8(&data[..at]) else { return };
    let object: Value = serde_json::from_slice(data.get(at + 1..).unwrap_or_default()).unwrap_or_default();
    let env = skeg_cel::Env::new().with_bindings().with("self", skeg_cel::Type::Dyn);
    let Ok(program) = env.compile(text) else { return };
    program.estimated_cost();
    let variables = BTreeMap::from([("self", skeg_cel::Value::of(&object))]);
    let evaluation = program.evaluate(&variables, skeg_cel::Limits::within(COST));
    if let Ok(value) = evaluation.value {
        assert!(evaluation.cost <= COST);
        let _ = value.to_json();
    }
}

/// Little, so that a run takes a moment.
const COST: u64 = 100_000;

/// A schema that is taken, and an object of it: pruning, defaults and rules come to an end, and what
/// they made they make no more of.
fn crd(data: &[u8]) {
    let Some((schema, mut object)) = two(data) else { return };
    let names = json!({"plural": "as", "singular": "a", "kind": "A", "listKind": "AList"});
    let mut definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "as.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced", "names": names, "versions": [
            {"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}},
        ]},
    });
    let kind = *DEFINITION_KIND;
    if decode::check(&kind.schema, &mut definition).is_err() {
        return;
    }
    kind.default(&mut definition);
    let mut errors = (kind.strategy.validate)(&definition);
    errors.extend((kind.strategy.validate_create)(&definition));
    if !errors.is_empty() || !object.is_object() {
        return;
    }
    let kind = crd::rows(&definition, &names).unwrap().remove(0);
    object["apiVersion"] = "example.com/v1".into();
    object["kind"] = "A".into();
    let read = |object: &Value| {
        let gvk = Gvk::new("example.com", "v1", "A");
        let text = object.to_string();
        decode::decode_object(text.as_bytes(), Encoding::Json, &gvk, &kind.schema, FieldValidation::Ignore)
    };
    let Ok(pruned) = read(&object) else { return };
    assert_eq!(read(&pruned.value).unwrap().value, pruned.value, "pruned once");
    let mut filled = pruned.value.clone();
    kind.default(&mut filled);
    let once = filled.clone();
    kind.default(&mut filled);
    assert_eq!(filled, once, "filled once");
    let mut errors = pruned.invalid;
    kind.check(&filled, Some(&pruned.value), &mut errors);
}

fn jsonpath(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(path) = JsonPath::parse(text) else { return };
    let document = json!({"a": [{"b": "c", "d": [1, 2, 3]}, {"b.c": [{"d": 1}]}], "spec": {"a": [{"b": 1}]}});
    let found = path.find(&document);
    assert_eq!(path.first(&document), found.first().copied());
    path.fields();
}

fn of_query(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let asked = query::Query::parse(text);
    for name in ["continue", "a"] {
        if let Ok(token) = Token::decode(asked.text(name)) {
            assert_eq!(Token::decode(&token.encode()).unwrap(), token);
        }
    }
    let _ = parse_revision(asked.text("resourceVersion"));
    query::duration(asked.text("timeout"));
    asked.flag("watch");
}

fn accept(data: &[u8]) {
    let Ok(value) = http::HeaderValue::from_bytes(data) else { return };
    let mut headers = http::HeaderMap::new();
    headers.insert(http::header::ACCEPT, value.clone());
    headers.insert(http::header::CONTENT_TYPE, value);
    for offer in [Offer::PLAIN, Offer { forms: true, protobuf: false }] {
        let _ = Output::negotiate(&headers, offer);
    }
    let _ = skeg_apiserver::negotiate::input(&headers);
    skeg_apiserver::negotiate::error_encoding(&headers);
}
