//! The Rust client, the `kube` crate: typed and dynamic API, watches, subresources, streams.

use crate::{Case, Scope};
use anyhow::{Context, Result, bail, ensure};
use futures_util::{AsyncBufReadExt, StreamExt, TryStreamExt};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, ServiceAccount};
use kube::api::{
    AttachParams, DeleteParams, DynamicObject, EvictParams, ListParams, LogParams, PartialObjectMeta, Patch,
    PatchParams, PostParams, Preconditions, WatchEvent, WatchParams,
};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::GroupVersionKind;
use kube::discovery::{self, Discovery, Scope as Reach};
use kube::runtime::wait::{await_condition, conditions};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, reflector};
use kube::{Api, Client, Config, Error, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::pin::pin;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

pub const CASES: &[Case] = &[
    Case { name: "the_rust_client", run: |scope| with_client(scope, objects) },
    Case { name: "the_rust_client_watches", run: |scope| with_client(scope, watches) },
    Case { name: "the_rust_client_patches_and_applies", run: |scope| with_client(scope, patches) },
    Case { name: "the_rust_client_scales_and_deletes", run: |scope| with_client(scope, scales) },
    Case { name: "the_rust_client_streams", run: |scope| with_client(scope, streams) },
    Case { name: "the_rust_client_discovers", run: |scope| with_client(scope, discovers) },
];

/// How long a case may take.
const PATIENCE: Duration = Duration::from_secs(90);

/// Runs a case of this client, whose default namespace is the case's.
pub fn with_client<F>(scope: &Scope<'_>, work: impl FnOnce(Client) -> F) -> Result<()>
where
    F: Future<Output = Result<()>>,
{
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let read = Kubeconfig::read_from(scope.cluster.kubeconfig())?;
        let mut config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await?;
        config.default_namespace.clone_from(&scope.namespace);
        let work = work(Client::try_from(config)?);
        tokio::time::timeout(PATIENCE, work).await.context("the client waits for what does not come")?
    })
}

/// An object of a type by its JSON.
pub fn object<K: DeserializeOwned>(json: Value) -> Result<K> {
    Ok(serde_json::from_value(json)?)
}

fn map(name: &str, data: &Value) -> Result<ConfigMap> {
    object(json!({"metadata": {"name": name, "labels": {"app": "rust"}}, "data": data}))
}

fn data(map: &ConfigMap) -> Value {
    json!(map.data)
}

/// The status with which the server refused.
pub fn refused<T>(result: kube::Result<T>) -> Result<kube::core::Status> {
    match result {
        Err(Error::Api(status)) => Ok(*status),
        Err(error) => Err(error.into()),
        Ok(_) => bail!("it was not refused"),
    }
}

async fn objects(client: Client) -> Result<()> {
    ensure!(client.apiserver_version().await?.minor.starts_with("36"));
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let post = PostParams::default();
    ensure!(maps.get_opt("a").await?.is_none());
    for name in ["a", "b", "c"] {
        maps.create(&post, &map(name, &json!({"is": name}))?).await?;
    }
    let status = refused(maps.create(&post, &map("a", &json!({}))?).await)?;
    ensure!(status.is_already_exists() && status.code == 409, "{status:?}");
    let details = status.details.context("details")?;
    ensure!(details.name == "a" && details.kind == "configmaps", "{details:?}");
    let status = refused(maps.get("none").await)?;
    ensure!(status.is_not_found() && status.message == "configmaps \"none\" not found", "{status:?}");
    let status = refused(maps.create(&post, &map("A", &json!({}))?).await)?;
    ensure!(status.is_invalid(), "{status:?}");
    ensure!(status.details.is_some_and(|details| details.causes[0].field == "metadata.name"));

    // Pages, whole and as metadata alone.
    let two = ListParams::default().labels("app=rust").limit(2);
    let counted = maps.list(&ListParams::default().limit(1)).await?.metadata.remaining_item_count;
    ensure!(counted.is_some_and(|count| count >= 2), "{counted:?}");
    let first = maps.list(&two).await?;
    ensure!(first.items.len() == 2 && first.metadata.remaining_item_count.is_none(), "{:?}", first.metadata);
    let more = first.metadata.continue_.context("a continue token")?;
    let rest = maps.list_metadata(&two.clone().continue_token(&more)).await?;
    ensure!(rest.items.len() == 1 && rest.items[0].name_any() == "c", "{rest:?}");
    ensure!(maps.list(&ListParams::default().fields("metadata.name=b")).await?.items.len() == 1);

    // An object as it was is not replaced.
    let old = maps.get("a").await?;
    let mut new = old.clone();
    new.data = object(json!({"is": "new"}))?;
    maps.replace("a", &post, &new).await?;
    let status = refused(maps.replace("a", &post, &old).await)?;
    ensure!(status.is_conflict() && status.message.contains("the object has been modified"), "{status:?}");
    let mut entry = maps.entry("d").await?.or_insert(|| map("d", &json!({"is": "d"})).unwrap_or_default());
    entry.commit(&post).await?;
    let mut entry = maps.entry("d").await?.and_modify(|map| {
        map.labels_mut().insert("more".into(), "yes".into());
    });
    let kube::api::entry::Entry::Occupied(entry) = &mut entry else { bail!("d is not there") };
    entry.commit(&post).await?;
    ensure!(maps.get_metadata("d").await?.labels().get("more").is_some_and(|value| value == "yes"));

    let dry = PostParams { dry_run: true, ..PostParams::default() };
    ensure!(maps.create(&dry, &map("e", &json!({}))?).await?.metadata.uid.is_some());
    ensure!(maps.get_opt("e").await?.is_none());
    let other = Preconditions { uid: Some("other".into()), ..Preconditions::default() };
    let status = refused(maps.delete("a", &DeleteParams::default().preconditions(other)).await)?;
    ensure!(
        status.is_conflict() && status.message.contains("the UID in the precondition (other) does not match"),
        "{status:?}"
    );
    let deleted = maps.delete("a", &DeleteParams::default()).await?;
    let status = deleted.right().context("a Status of what was deleted at once")?;
    ensure!(status.is_success() && status.details.is_some_and(|details| details.name == "a"));
    let gone =
        maps.delete_collection(&DeleteParams::default(), &ListParams::default().labels("app=rust")).await?;
    ensure!(gone.left().is_some_and(|list| list.items.len() == 3));
    ensure!(maps.list(&ListParams::default().labels("app=rust")).await?.items.is_empty());
    Ok(())
}

/// What a watcher says, up to an event that ends it, without the order within the initial list.
async fn told(
    maps: &Api<ConfigMap>,
    config: watcher::Config,
    mut after_list: impl AsyncFnMut() -> Result<()>,
) -> Result<Vec<String>> {
    let mut events = pin!(watcher::watcher(maps.clone(), config.labels("app=rust")));
    let mut told = Vec::new();
    while let Some(event) = events.try_next().await? {
        told.push(match event {
            Event::Init => "init".into(),
            Event::InitApply(map) => format!("listed {} {}", map.name_any(), data(&map)),
            Event::InitDone => {
                after_list().await?;
                "listed".into()
            }
            Event::Apply(map) => format!("applied {} {}", map.name_any(), data(&map)),
            Event::Delete(map) => {
                told.push(format!("deleted {}", map.name_any()));
                break;
            }
        });
    }
    Ok(told)
}

async fn watches(client: Client) -> Result<()> {
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let post = PostParams::default();
    let merge = |data: Value| Patch::Merge(json!({"data": data}));
    let patch = PatchParams::default();
    let start = maps.list(&ListParams::default()).await?.metadata.resource_version.context("a version")?;
    maps.create(&post, &map("a", &json!({"n": "1"}))?).await?;
    maps.create(&post, &map("b", &json!({"n": "1"}))?).await?;

    // From a version on; then from one that is no version.
    let mut events = pin!(maps.watch(&WatchParams::default().labels("app=rust"), &start).await?);
    for name in ["a", "b"] {
        let event = events.try_next().await?;
        ensure!(matches!(&event, Some(WatchEvent::Added(map)) if map.name_any() == name), "{event:?}");
    }
    let status = refused(maps.watch(&WatchParams::default(), "x").await.map(drop))?;
    ensure!(status.code == 400, "{status:?}");

    // However the initial list comes, a watcher tells the same.
    for config in [
        watcher::Config::default(),
        watcher::Config::default().page_size(1),
        watcher::Config::default().any_semantic(),
        watcher::Config::default().streaming_lists(),
    ] {
        let how = format!("{config:?}");
        let said = told(&maps, config, async || {
            maps.patch("a", &patch, &merge(json!({"n": "2"}))).await?;
            // What no longer matches is deleted for who watches.
            maps.patch("b", &patch, &Patch::Merge(json!({"metadata": {"labels": {"app": "other"}}}))).await?;
            Ok(())
        });
        let said = said.await?;
        let expected = [
            "init",
            "listed a {\"n\":\"1\"}",
            "listed b {\"n\":\"1\"}",
            "listed",
            "applied a {\"n\":\"2\"}",
            "deleted b",
        ];
        ensure!(said == expected, "{how}: {said:?}");
        maps.patch("a", &patch, &merge(json!({"n": "1"}))).await?;
        maps.patch("b", &patch, &Patch::Merge(json!({"metadata": {"labels": {"app": "rust"}}}))).await?;
    }

    // A store that follows; metadata alone is streamed beside it.
    let (store, writer) = reflector::store::<ConfigMap>();
    let streaming = watcher::Config::default().labels("app=rust").streaming_lists();
    let mut changes = pin!(
        reflector(writer, watcher::watcher(maps.clone(), streaming.clone()))
            .default_backoff()
            .touched_objects()
    );
    let metadata: Api<PartialObjectMeta<ConfigMap>> = Api::default_namespaced(client);
    let mut metadata = pin!(watcher::watcher(metadata, streaming).touched_objects());
    for _ in 0..2 {
        changes.try_next().await?.context("the list")?;
        metadata.try_next().await?.context("the list as metadata")?;
    }
    maps.delete("b", &DeleteParams::default()).await?;
    let gone = changes.try_next().await?.context("a change")?;
    ensure!(gone.name_any() == "b" && metadata.try_next().await?.is_some_and(|map| map.name_any() == "b"));
    let held: Vec<String> = store.state().iter().map(|map| map.name_any()).collect();
    ensure!(held == ["a"], "{held:?}");
    Ok(())
}

async fn patches(client: Client) -> Result<()> {
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let metadata = json!({"name": "a"});
    let typed =
        |data: Value| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data});
    let nothing = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata});
    let apply = |manager: &str| PatchParams::apply(manager);
    let made = maps.patch("a", &apply("one"), &Patch::Apply(typed(json!({"k": "1", "own": "1"})))).await?;
    ensure!(made.metadata.uid.is_some(), "an apply creates");
    let two = Patch::Apply(typed(json!({"k": "2"})));
    let status = refused(maps.patch("a", &apply("two"), &two).await)?;
    ensure!(status.is_conflict(), "{status:?}");
    let causes = status.details.context("details")?.causes;
    ensure!(
        causes.len() == 1 && causes[0].field == ".data.k" && causes[0].reason == "FieldManagerConflict",
        "{causes:?}"
    );
    ensure!(causes[0].message.contains("conflict with \"one\""), "{causes:?}");
    let forced = maps.patch("a", &apply("two").force(), &two).await?;
    ensure!(data(&forced) == json!({"k": "2", "own": "1"}), "{forced:?}");
    let kept = maps.patch("a", &apply("one"), &Patch::Apply(nothing)).await?;
    ensure!(data(&kept) == json!({"k": "2"}), "what one alone owned goes: {kept:?}");
    let managers: Vec<_> =
        kept.managed_fields().iter().filter_map(|entry| entry.manager.as_deref()).collect();
    ensure!(managers == ["two"], "{:?}", kept.managed_fields());

    let patch = PatchParams::default();
    let operations = json!([{"op": "test", "path": "/data/k", "value": "2"}, {"op": "add", "path": "/data/j", "value": "1"}]);
    let patched = maps.patch("a", &patch, &Patch::<()>::Json(object(operations)?)).await?;
    ensure!(data(&patched) == json!({"j": "1", "k": "2"}), "{patched:?}");
    let wrong = json!([{"op": "test", "path": "/data/k", "value": "1"}]);
    let status = refused(maps.patch("a", &patch, &Patch::<()>::Json(object(wrong)?)).await)?;
    ensure!(status.code == 422, "{status:?}");
    let patched = maps.patch("a", &patch, &Patch::Merge(json!({"data": {"j": null}}))).await?;
    ensure!(data(&patched) == json!({"k": "2"}), "{patched:?}");
    let odd = Patch::Merge(json!({"odd": 1}));
    let status = refused(maps.patch("a", &patch.clone().validation_strict(), &odd).await)?;
    ensure!(status.is_invalid() && status.message.contains("unknown field \"odd\""), "{status:?}");
    maps.patch("a", &patch.clone().validation_ignore(), &odd).await?;
    maps.patch("a", &patch.clone().dry_run(), &Patch::Merge(json!({"data": {"k": "3"}}))).await?;
    let metadata =
        maps.patch_metadata("a", &patch, &Patch::Merge(json!({"metadata": {"labels": {"x": "y"}}}))).await?;
    ensure!(metadata.labels().len() == 1 && data(&maps.get("a").await?) == json!({"k": "2"}));

    // Lists are merged by their keys.
    let deployments: Api<Deployment> = Api::default_namespaced(client);
    deployments.create(&PostParams::default(), &object(super::deployment("web", 0))?).await?;
    let container = |container: Value| {
        Patch::Strategic(json!({"spec": {"template": {"spec": {"containers": [container]}}}}))
    };
    let patched = deployments.patch("web", &patch, &container(json!({"name": "nginx", "tty": true}))).await?;
    let patched = json!(patched)["spec"]["template"]["spec"]["containers"].clone();
    ensure!(patched[0]["image"] == "nginx" && patched[0]["tty"] == true && patched[1].is_null(), "{patched}");
    Ok(())
}

async fn scales(client: Client) -> Result<()> {
    let deployments: Api<Deployment> = Api::default_namespaced(client.clone());
    let sets: Api<ReplicaSet> = Api::default_namespaced(client.clone());
    let post = PostParams::default();
    for name in ["web", "orphaned"] {
        deployments.create(&post, &object(super::deployment(name, 0))?).await?;
    }
    let mut scale = deployments.get_scale("web").await?;
    let spec = scale.spec.as_mut().context("a spec")?;
    ensure!(spec.replicas.unwrap_or_default() == 0, "{spec:?}");
    spec.replicas = Some(2);
    // The controller writes too: whichever version it is of.
    scale.metadata.resource_version = None;
    let scale = deployments.replace_scale("web", &post, &scale).await?;
    ensure!(scale.spec.is_some_and(|spec| spec.replicas == Some(2)));
    let one = Patch::Merge(json!({"spec": {"replicas": 1}}));
    let scale = deployments.patch_scale("web", &PatchParams::default(), &one).await?;
    ensure!(scale.spec.is_some_and(|spec| spec.replicas == Some(1)));
    let is_ready = |web: Option<&Deployment>| {
        let status = web.and_then(|web| web.status.as_ref());
        status.is_some_and(|status| status.ready_replicas == Some(1) && status.replicas == Some(1))
    };
    await_condition(deployments.clone(), "web", is_ready).await?;
    await_condition(deployments.clone(), "web", conditions::is_deployment_completed()).await?;
    let status = deployments.get_status("web").await?.status.context("a status")?;
    ensure!(status.ready_replicas == Some(1), "{status:?}");
    // A status is written apart.
    let both =
        json!({"spec": {"replicas": 9}, "status": {"conditions": [{"type": "Rust", "status": "True"}]}});
    let patched = deployments.patch_status("web", &PatchParams::default(), &Patch::Strategic(both)).await?;
    ensure!(patched.spec.is_some_and(|spec| spec.replicas == Some(1)), "a status changes no spec");
    let conditions = patched.status.and_then(|status| status.conditions).unwrap_or_default();
    ensure!(conditions.iter().any(|condition| condition.type_ == "Rust"), "{conditions:?}");

    let uid = |deployment: &Deployment| deployment.uid().context("a UID");
    let web = uid(&deployments.get("web").await?)?;
    let left = deployments.delete("web", &DeleteParams::foreground()).await?.left();
    let finalizers = left.context("an object that is still there")?.finalizers().to_vec();
    ensure!(finalizers == ["foregroundDeletion"], "{finalizers:?}");
    await_condition(deployments.clone(), "web", conditions::is_deleted(&web)).await?;
    let of = |name: &str| ListParams::default().labels(&format!("app={name}"));
    ensure!(sets.list(&of("web")).await?.items.is_empty(), "the foreground deletion came first");
    let orphaned = uid(&deployments.get("orphaned").await?)?;
    deployments.delete("orphaned", &DeleteParams::orphan()).await?;
    await_condition(deployments, "orphaned", conditions::is_deleted(&orphaned)).await?;
    let left = sets.list(&of("orphaned")).await?.items;
    ensure!(left.len() == 1 && left[0].owner_references().is_empty(), "{left:?}");
    Ok(())
}

fn is_ready(pod: Option<&Pod>) -> bool {
    let status = pod.and_then(|pod| pod.status.as_ref());
    let conditions = status.and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

async fn streams(client: Client) -> Result<()> {
    // This client is faster than the controller that gives a namespace its account.
    let accounts: Api<ServiceAccount> = Api::default_namespaced(client.clone());
    await_condition(accounts, "default", conditions::is_created()).await?;
    let pods: Api<Pod> = Api::default_namespaced(client);
    let mut pod = super::pod("rust", &[("main", "echo begun; while read line; do echo got $line; done")]);
    pod["spec"]["containers"][0]["stdin"] = true.into();
    let web = json!({"name": "web", "image": "nginx", "imagePullPolicy": "IfNotPresent"});
    pod["spec"]["containers"].as_array_mut().context("containers")?.push(web);
    let made = pods.create(&PostParams::default(), &object(pod)?).await?;
    await_condition(pods.clone(), "rust", is_ready).await?;
    let main = AttachParams::default().container("main").stdin(true);

    let mut process = pods.exec("rust", ["sh", "-c", "cat; echo err >&2; exit 3"], &main).await?;
    let (mut stdout, mut stderr) = (process.stdout().context("stdout")?, process.stderr().context("stderr")?);
    let status = process.take_status().context("a status")?;
    let mut stdin = process.stdin().context("stdin")?;
    stdin.write_all(b"typed\n").await?;
    stdin.shutdown().await?;
    drop(stdin);
    let (mut out, mut err) = (String::new(), String::new());
    stdout.read_to_string(&mut out).await?;
    stderr.read_to_string(&mut err).await?;
    ensure!(out == "typed\n" && err == "err\n", "{out:?} {err:?}");
    let status = json!(status.await.context("a status")?);
    ensure!(
        status["reason"] == "NonZeroExitCode" && status["details"]["causes"][0]["message"] == "3",
        "{status}"
    );
    process.join().await?;
    // A terminal that has no size yet says nothing.
    let terminal = AttachParams::interactive_tty().container("main");
    let mut process = pods
        .exec("rust", ["sh", "-c", "read line; until stty size | grep 100; do sleep 0.1; done"], &terminal)
        .await?;
    let mut size = process.terminal_size().context("a terminal")?;
    futures_util::SinkExt::send(&mut size, kube::api::TerminalSize { height: 30, width: 100 }).await?;
    let mut stdin = process.stdin().context("stdin")?;
    stdin.write_all(b"go\n").await?;
    let mut out = String::new();
    process.stdout().context("stdout")?.read_to_string(&mut out).await?;
    ensure!(out.contains("30 100"), "{out:?}");

    let mut attached = pods.attach("rust", &main).await?;
    attached.stdin().context("stdin")?.write_all(b"words\n").await?;
    let mut buffer = [0; 10];
    attached.stdout().context("stdout")?.read_exact(&mut buffer).await?;
    ensure!(&buffer == b"got words\n", "{buffer:?}");
    attached.abort();

    let logs = LogParams { container: Some("main".into()), ..LogParams::default() };
    ensure!(pods.logs("rust", &LogParams { tail_lines: Some(1), ..logs.clone() }).await? == "got words\n");
    let mut lines = pods.log_stream("rust", &LogParams { follow: true, ..logs.clone() }).await?.lines();
    ensure!(lines.next().await.transpose()?.as_deref() == Some("begun"));
    drop(lines);
    let status = refused(pods.logs("rust", &LogParams { container: Some("none".into()), ..logs }).await)?;
    ensure!(
        status.code == 400 && status.message.contains("container none is not valid for pod rust"),
        "{status:?}"
    );

    let mut forwarder = pods.portforward("rust", &[80]).await?;
    let mut stream = forwarder.take_stream(80).context("a stream")?;
    stream.write_all(b"GET / HTTP/1.0\r\nConnection: close\r\n\r\n").await?;
    let mut page = String::new();
    stream.read_to_string(&mut page).await?;
    ensure!(page.starts_with("HTTP/1.1 200"), "{page}");
    drop(stream);
    forwarder.abort();

    let status = pods.evict("rust", &EvictParams::default()).await?;
    ensure!(status.is_success() && status.code == 201, "{status:?}");
    let uid = made.uid().context("a UID")?;
    await_condition(pods, "rust", conditions::is_deleted(&uid)).await?;
    Ok(())
}

async fn discovers(client: Client) -> Result<()> {
    // In both forms of discovery the same.
    let one =
        Discovery::new(client.clone()).exclude(&["rust.example.com", "stable.example.com"]).run().await?;
    let whole = Discovery::new(client.clone()).run_aggregated().await?;
    for group in one.groups_alphabetical() {
        let kinds = |group: &discovery::ApiGroup| -> Vec<String> {
            let mut kinds: Vec<String> = group
                .recommended_resources()
                .iter()
                .map(|(resource, can)| {
                    let mut verbs = can.operations.clone();
                    verbs.sort();
                    let subresources: Vec<_> = can.subresources.iter().map(|(sub, _)| &sub.plural).collect();
                    format!("{resource:?} {:?} {verbs:?} {subresources:?}", can.scope)
                })
                .collect();
            kinds.sort();
            kinds
        };
        let aggregated = whole.get(group.name());
        // Groups of other cases come and go.
        if let Some(aggregated) = aggregated {
            ensure!(
                kinds(group) == kinds(aggregated),
                "{}: {:?} {:?}",
                group.name(),
                kinds(group),
                kinds(aggregated)
            );
        }
    }
    let gvk = GroupVersionKind::gvk("apps", "v1", "Deployment");
    let (resource, can) = whole.resolve_gvk(&gvk).context("Deployments")?;
    ensure!(
        resource.plural == "deployments" && can.scope == Reach::Namespaced && can.supports_operation("watch")
    );
    let (resource, _) =
        discovery::pinned_kind(&client, &GroupVersionKind::gvk("", "v1", "ConfigMap")).await?;
    let maps: Api<DynamicObject> = Api::default_namespaced_with(client.clone(), &resource);
    let mut map = DynamicObject::new("dynamic", &resource);
    map.data = json!({"data": {"k": "v"}});
    let applied = maps.patch("dynamic", &PatchParams::apply("dynamic"), &Patch::Apply(&map)).await?;
    ensure!(applied.data["data"]["k"] == "v" && applied.types.is_some_and(|types| types.kind == "ConfigMap"));
    let listed = maps.list(&ListParams::default().fields("metadata.name=dynamic")).await?.items;
    ensure!(listed.len() == 1 && listed[0].data["data"]["k"] == "v", "{listed:?}");
    Ok(())
}
