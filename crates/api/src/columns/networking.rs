//! Columns of the group `networking.k8s.io`.

use super::*;

pub(super) const INGRESS: &[Row] = &[
    NAME,
    s("Class", |o, _| or(text(o, "/spec/ingressClassName"), NONE).into()),
    s("Hosts", |o, _| hosts(o).into()),
    s("Address", |o, _| addresses(o).into()),
    s("Ports", |o, _| if size(o, "/spec/tls") > 0 { "80, 443" } else { "80" }.into()),
    AGE,
];

pub(super) const INGRESS_CLASS: &[Row] = &[
    NAME,
    s("Controller", |o, _| text(o, "/spec/controller").into()),
    s("Parameters", |o, _| {
        let Some(at) = o.pointer("/spec/parameters").filter(|at| at.is_object()) else { return NONE.into() };
        let group = text(at, "/apiGroup");
        let dot = if group.is_empty() { "" } else { "." };
        format!("{}{dot}{group}/{}", text(at, "/kind"), text(at, "/name")).into()
    }),
    AGE,
];

pub(super) const NETWORK_POLICY: &[Row] =
    &[NAME, s("Pod-Selector", |o, _| selector_at(o, "/spec/podSelector").into()), AGE];

pub(super) const IP_ADDRESS: &[Row] = &[
    NAME,
    s("ParentRef", |o, _| {
        let Some(at) = o.pointer("/spec/parentRef") else { return NONE.into() };
        let (group, namespace) = (text(at, "/group"), text(at, "/namespace"));
        let dot = if group.is_empty() { "" } else { "." };
        let slash = if namespace.is_empty() { "" } else { "/" };
        format!("{}{dot}{group}/{namespace}{slash}{}", text(at, "/resource"), text(at, "/name")).into()
    }),
    AGE,
];

pub(super) const SERVICE_CIDR: &[Row] = &[
    NAME,
    s("CIDRs", |o, _| join(list(o, "/spec/cidrs").iter().filter_map(Value::as_str), ",").into()),
    AGE,
];

fn hosts(ingress: &Value) -> String {
    let rules = list(ingress, "/spec/rules");
    let named: Vec<&str> =
        rules.iter().map(|rule| text(rule, "/host")).filter(|host| !host.is_empty()).collect();
    let shown = join(named.iter().take(LIST_LEN_MAX).copied(), ",");
    match named.len() {
        0 => "*".to_owned(),
        len if len > LIST_LEN_MAX => format!("{shown} + {} more...", rules.len() - LIST_LEN_MAX),
        _ => shown,
    }
}

fn addresses(ingress: &Value) -> String {
    let points = list(ingress, "/status/loadBalancer/ingress").iter();
    let all: BTreeSet<&str> =
        points.map(|at| or(text(at, "/ip"), text(at, "/hostname"))).filter(|at| !at.is_empty()).collect();
    join(all, ",")
}
