use super::*;

const BUILT_IN: Offer = Offer { forms: true, protobuf: true };
const CUSTOM: Offer = Offer { forms: true, protobuf: false };

fn output(accept: &str, offer: Offer) -> Result<Output, Status> {
    let mut headers = HeaderMap::new();
    headers.insert(ACCEPT, accept.parse().unwrap());
    Output::negotiate(&headers, offer)
}

fn check(accept: &str, expected: Option<(Encoding, Form)>) {
    let got = output(accept, BUILT_IN).ok().map(|o| (o.encoding, o.form));
    assert_eq!(got, expected, "{accept}");
}

#[test]
fn picks_the_first_form_it_can() {
    let protobuf = Some((Encoding::Protobuf, Form::Whole));
    check("*/*", Some((Encoding::Json, Form::Whole)));
    check("*", Some((Encoding::Json, Form::Whole)));
    check("application/*", Some((Encoding::Json, Form::Whole)));
    check("application/yaml", Some((Encoding::Yaml, Form::Whole)));
    check("application/vnd.kubernetes.protobuf,application/json", protobuf);
    check("application/vnd.kubernetes.protobuf", protobuf);
    check("application/vnd.kubernetes.protobuf;stream=watch", protobuf);
    check("application/vnd.kubernetes.protobuf;stream=other", None);
    check("application/yaml;stream=watch", None);
    check("application/json;sv=v1", Some((Encoding::Json, Form::Whole)));
    check("application/json;sv=v2", None);
    check(
        "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json",
        Some((Encoding::Json, Form::Table)),
    );
    check(
        "application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io,application/yaml;as=Table;v=v1;g=meta.k8s.io",
        Some((Encoding::Yaml, Form::Table)),
    );
    check(
        "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
        Some((Encoding::Protobuf, Form::Metadata)),
    );
    check("application/json;as=Table;g=other;v=v1", None);
    check("application/json;g=meta.k8s.io;v=v1", None);
    check("text/html", None);
    check("application/json/x, json", None);
}

#[test]
fn qualities_and_wildcards_order_as_upstreams() {
    check("application/yaml;q=0.5, application/json", Some((Encoding::Json, Form::Whole)));
    check("application/json;q=0.5, application/yaml;q=0.7", Some((Encoding::Yaml, Form::Whole)));
    check("application/yaml;q=0.1, */*", Some((Encoding::Json, Form::Whole)));
    check("*/*, application/vnd.kubernetes.protobuf;q=0.2", Some((Encoding::Protobuf, Form::Whole)));
    check("application/json;q=0", Some((Encoding::Json, Form::Whole)));
    check("application/json;q=x, application/yaml;q=0.1", Some((Encoding::Yaml, Form::Whole)));
}

#[test]
fn custom_resources_have_no_protobuf_but_their_metadata_has() {
    let encoding = |accept: &str| output(accept, CUSTOM).ok().map(|output| output.encoding);
    assert_eq!(encoding("application/vnd.kubernetes.protobuf"), None);
    assert_eq!(encoding("application/vnd.kubernetes.protobuf, application/json"), Some(Encoding::Json));
    let metadata = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
    assert_eq!(encoding(metadata), Some(Encoding::Protobuf));
}

#[test]
fn refusals_name_what_there_is() {
    let refused = output("text/html", BUILT_IN).unwrap_err();
    assert_eq!(
        (refused.code, refused.message.as_str()),
        (
            406,
            "only the following media types are accepted: application/json, application/yaml, \
             application/vnd.kubernetes.protobuf"
        )
    );
    let refused = output("application/yaml", BUILT_IN).unwrap().streamed().unwrap_err();
    assert!(refused.message.ends_with("application/vnd.kubernetes.protobuf;stream=watch"));
}

#[test]
fn only_the_first_header_counts_and_people_get_lines() {
    let mut headers = HeaderMap::new();
    headers.append(ACCEPT, "application/yaml".parse().unwrap());
    headers.append(ACCEPT, "application/json".parse().unwrap());
    assert_eq!(Output::negotiate(&headers, BUILT_IN).unwrap().encoding, Encoding::Yaml);
    assert!(output("application/json;pretty=1", BUILT_IN).unwrap().pretty);
    headers.insert(USER_AGENT, "curl/8.0".parse().unwrap());
    assert!(Output::negotiate(&headers, BUILT_IN).unwrap().pretty);
}
