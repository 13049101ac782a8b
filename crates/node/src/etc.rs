//! The files under `/etc` that a Pod's containers share: hosts, resolv.conf, hostname.
//! Upstream counterparts: `kubelet_pods.go` (hosts), `pkg/kubelet/network/dns`.

use crate::{NodeConfig, text};
use k8s_openapi::api::core::v1::{Pod, PodSpec};
use std::fmt::Write;

const HOSTNAME_LEN_MAX: usize = 63;
/// Limits of resolvers, as upstream enforces them.
const NAMESERVERS_MAX: usize = 3;
const SEARCHES_MAX: usize = 32;
const SEARCH_LEN_MAX: usize = 253;
const SEARCH_LINE_LEN_MAX: usize = 2048;

/// The host name and, for Pods in a subdomain, the domain.
pub fn hostname(pod: &Pod, spec: &PodSpec, cluster_domain: &str) -> (String, Option<String>) {
    if let Some(name) = spec.hostname_override.as_deref().filter(|n| !n.is_empty()) {
        return (name.to_owned(), None);
    }
    let given = spec.hostname.as_deref().filter(|n| !n.is_empty()).unwrap_or(text(&pod.metadata.name));
    let name = given.chars().take(HOSTNAME_LEN_MAX).collect::<String>();
    let name = name.trim_end_matches(['-', '.']).to_owned();
    let domain = spec
        .subdomain
        .as_deref()
        .filter(|s| !s.is_empty())
        .map(|s| format!("{s}.{}.svc.{cluster_domain}", text(&pod.metadata.namespace)));
    (name, domain)
}

/// What `hostname` shows inside: the whole name where the Pod asks for it.
pub fn shown_hostname(pod: &Pod, spec: &PodSpec, cluster_domain: &str) -> String {
    match hostname(pod, spec, cluster_domain) {
        (name, Some(domain)) if spec.set_hostname_as_fqdn == Some(true) => format!("{name}.{domain}"),
        (name, _) => name,
    }
}

/// `/etc/hosts` of a Pod with its own network, or the host's with the Pod's aliases.
pub fn hosts(
    pod: &Pod,
    spec: &PodSpec,
    pod_ips: &[String],
    cluster_domain: &str,
    host_file: Option<&str>,
) -> String {
    let mut out = match host_file {
        Some(file) => format!("# Kubernetes-managed hosts file (host network).\n{file}"),
        None => {
            let mut out = String::from(
                "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
                 fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
            );
            let (name, domain) = hostname(pod, spec, cluster_domain);
            for ip in pod_ips {
                let _ = match &domain {
                    Some(domain) => writeln!(out, "{ip}\t{name}.{domain}\t{name}"),
                    None => writeln!(out, "{ip}\t{name}"),
                };
            }
            out
        }
    };
    if spec.host_aliases.iter().flatten().next().is_some() {
        out.push_str("\n# Entries added by HostAliases.\n");
        for alias in spec.host_aliases.iter().flatten() {
            let names = alias.hostnames.as_deref().unwrap_or_default().join("\t");
            let _ = writeln!(out, "{}\t{names}", alias.ip);
        }
    }
    out
}

#[derive(Default)]
struct Resolver {
    nameservers: Vec<String>,
    searches: Vec<String>,
    options: Vec<String>,
}

impl Resolver {
    fn parse(file: &str) -> Self {
        let mut out = Resolver::default();
        for line in file.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => out.nameservers.extend(words.next().map(str::to_owned)),
                // The last search line counts.
                Some("search") => {
                    out.searches =
                        words.filter(|w| *w != ".").map(|w| w.trim_end_matches('.').to_owned()).collect();
                }
                Some("options") => out.options = words.map(str::to_owned).collect(),
                _ => {}
            }
        }
        out
    }

    /// Cuts what is beyond the limits; gives what to tell of that, in upstream's words.
    fn cut(&mut self) -> Vec<String> {
        let mut told = Vec::new();
        if self.nameservers.len() > NAMESERVERS_MAX {
            self.nameservers.truncate(NAMESERVERS_MAX);
            told.push(format!(
                "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: {}",
                self.nameservers.join(" ")
            ));
        }
        let wanted = self.searches.len();
        self.searches.truncate(SEARCHES_MAX);
        self.searches.retain(|search| search.len() <= SEARCH_LEN_MAX);
        while self.searches.join(" ").len() > SEARCH_LINE_LEN_MAX {
            self.searches.pop();
        }
        if self.searches.len() < wanted {
            told.push(format!(
                "Search Line limits were exceeded, some search paths have been omitted, the applied search line is: {}",
                self.searches.join(" ")
            ));
        }
        told
    }
}

/// What the Pod's DNS policy and configuration ask for, before the limits.
fn resolver(config: &NodeConfig, pod: &Pod, spec: &PodSpec, host_file: &str) -> Resolver {
    let host_network = spec.host_network == Some(true);
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let cluster = match policy {
        "ClusterFirstWithHostNet" => true,
        "ClusterFirst" => !host_network,
        _ => false,
    };
    let mut resolver = match (policy, cluster.then_some(config.cluster_dns).flatten()) {
        ("None", _) => Resolver::default(),
        (_, Some(dns)) => {
            let (ns, domain) = (text(&pod.metadata.namespace), &config.cluster_domain);
            let host = Resolver::parse(host_file);
            let mut searches = vec![format!("{ns}.svc.{domain}"), format!("svc.{domain}"), domain.clone()];
            for search in host.searches {
                if !searches.contains(&search) {
                    searches.push(search);
                }
            }
            Resolver { nameservers: vec![dns.to_string()], searches, options: vec!["ndots:5".into()] }
        }
        _ => Resolver::parse(host_file),
    };
    if let Some(own) = &spec.dns_config {
        for server in own.nameservers.iter().flatten() {
            if !resolver.nameservers.contains(server) {
                resolver.nameservers.push(server.clone());
            }
        }
        for search in own.searches.iter().flatten() {
            if !resolver.searches.contains(search) {
                resolver.searches.push(search.clone());
            }
        }
        for option in own.options.iter().flatten() {
            let name = text(&option.name);
            let value = option.value.as_deref().filter(|v| !v.is_empty());
            resolver.options.retain(|o| o.split(':').next() != Some(name));
            resolver.options.push(value.map_or_else(|| name.to_owned(), |v| format!("{name}:{v}")));
        }
    }
    resolver
}

/// What of the Pod's DNS configuration is cut: the messages of `DNSConfigForming` events.
pub fn dns_limits(config: &NodeConfig, pod: &Pod, spec: &PodSpec, host_file: &str) -> Vec<String> {
    resolver(config, pod, spec, host_file).cut()
}

/// `/etc/resolv.conf` by the Pod's DNS policy and configuration.
pub fn resolv_conf(config: &NodeConfig, pod: &Pod, spec: &PodSpec, host_file: &str) -> String {
    let mut resolver = resolver(config, pod, spec, host_file);
    resolver.cut();
    let mut out = String::new();
    if !resolver.searches.is_empty() {
        let _ = writeln!(out, "search {}", resolver.searches.join(" "));
    }
    for server in &resolver.nameservers {
        let _ = writeln!(out, "nameserver {server}");
    }
    if !resolver.options.is_empty() {
        let _ = writeln!(out, "options {}", resolver.options.join(" "));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "web-1", "namespace": "ns"}, "spec": spec}))
            .unwrap()
    }

    #[test]
    fn hosts_and_hostname_follow_the_spec() {
        let pod =
            pod(json!({"containers": [], "subdomain": "web", "hostname": "w", "setHostnameAsFQDN": true,
            "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["a", "b"]}]}));
        let spec = pod.spec.as_ref().unwrap();
        assert_eq!(shown_hostname(&pod, spec, "cluster.local"), "w.web.ns.svc.cluster.local");
        let file = hosts(&pod, spec, &["10.0.0.5".into()], "cluster.local", None);
        assert!(file.contains("\n10.0.0.5\tw.web.ns.svc.cluster.local\tw\n"), "{file}");
        assert!(file.ends_with("# Entries added by HostAliases.\n1.2.3.4\ta\tb\n"), "{file}");
    }

    #[test]
    fn dns_policies_choose_the_resolver() {
        let config = crate::agent::tests::config();
        let host = "nameserver 9.9.9.9\nsearch example.com\noptions edns0\n";
        let of = |spec: serde_json::Value| {
            let pod = pod(spec);
            resolv_conf(&config, &pod, pod.spec.as_ref().unwrap(), host)
        };
        assert_eq!(
            of(json!({"containers": []})),
            "search ns.svc.cluster.local svc.cluster.local cluster.local example.com\nnameserver 10.96.0.10\noptions ndots:5\n"
        );
        assert_eq!(
            of(json!({"containers": [], "dnsPolicy": "Default"})),
            "search example.com\nnameserver 9.9.9.9\noptions edns0\n"
        );
        assert_eq!(
            of(json!({"containers": [], "hostNetwork": true})),
            "search example.com\nnameserver 9.9.9.9\noptions edns0\n"
        );
        let own = json!({"nameservers": ["1.1.1.1"], "searches": ["x"], "options": [{"name": "ndots", "value": "2"}]});
        assert_eq!(
            of(json!({"containers": [], "dnsPolicy": "None", "dnsConfig": own})),
            "search x\nnameserver 1.1.1.1\noptions ndots:2\n"
        );
    }

    #[test]
    fn what_resolvers_do_not_take_is_cut_and_told() {
        let config = crate::agent::tests::config();
        let of = |own: serde_json::Value| {
            let pod = pod(json!({"containers": [], "dnsPolicy": "None", "dnsConfig": own}));
            let spec = pod.spec.as_ref().unwrap();
            (resolv_conf(&config, &pod, spec, ""), dns_limits(&config, &pod, spec, ""))
        };
        let searches = |count: usize, len: usize| -> Vec<String> {
            (0..count).map(|n| format!("{n:03}{}", "x".repeat(len - 3))).collect()
        };
        const SEARCHES: &str = "Search Line limits were exceeded, some search paths have been omitted, \
            the applied search line is: ";
        for (asked, applied) in [
            (searches(32, 4), searches(32, 4)),
            (searches(33, 4), searches(32, 4)),
            ([searches(1, 254), searches(1, 253)].concat(), searches(1, 253)),
            (searches(9, 250), searches(8, 250)),
        ] {
            let (file, told) = of(json!({"nameservers": ["1.1.1.1"], "searches": asked}));
            let applied_line = applied.join(" ");
            assert_eq!(file, format!("search {applied_line}\nnameserver 1.1.1.1\n"));
            let message = (asked != applied).then(|| format!("{SEARCHES}{applied_line}"));
            assert_eq!(told, Vec::from_iter(message));
        }
        let (file, told) = of(json!({"nameservers": ["1.1.1.1", "2.2.2.2", "3.3.3.3", "4.4.4.4"]}));
        assert_eq!(file, "nameserver 1.1.1.1\nnameserver 2.2.2.2\nnameserver 3.3.3.3\n");
        let message = "Nameserver limits were exceeded, some nameservers have been omitted, \
            the applied nameserver line is: 1.1.1.1 2.2.2.2 3.3.3.3";
        assert_eq!(told, [message]);
    }
}
