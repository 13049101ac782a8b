//! Settings: flags over the configuration file over defaults, checked before anything starts.

use crate::cli::Up;
use crate::instance::Instance;
use crate::refuse;
use anyhow::{Context, Result};
use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Deserializer, Serialize, de::Error};
use skeg_api::field::Path;
use skeg_apiserver::admission::pod_security::PodSecurityConfiguration;
use skeg_apiserver::admission::{Plugins, SWITCHABLE};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

/// What `--config FILE` may hold.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct ConfigFile {
    listen: Option<SocketAddr>,
    node_name: Option<String>,
    #[serde(deserialize_with = "optional_range")]
    pod_cidr: Option<Ipv4Net>,
    #[serde(deserialize_with = "optional_range")]
    service_cidr: Option<Ipv4Net>,
    registries: Option<PathBuf>,
    max_pods: Option<u32>,
    seccomp_default: Option<bool>,
    compaction_interval_seconds: Option<u32>,
    enable_admission_plugins: Vec<String>,
    disable_admission_plugins: Vec<String>,
    pod_security: PodSecurityConfiguration,
}

/// A line for each key of the configuration file, shown beside what cannot be read.
const EXAMPLE: &str = "\
listen: 127.0.0.1:6443
nodeName: node-1
podCidr: 10.42.0.0/16
serviceCidr: 10.43.0.0/16
registries: /etc/skeg/registries.yaml
maxPods: 110
seccompDefault: true
compactionIntervalSeconds: 300
enableAdmissionPlugins: [ExtendedResourceToleration]
disableAdmissionPlugins: [LimitRanger]
podSecurity: {defaults: {enforce: baseline}}";

/// A range of addresses as flags and the configuration file spell it.
pub fn range(text: &str) -> Result<Ipv4Net, String> {
    const LIKE: &str = "name a range such as 10.42.0.0/16";
    match text.parse() {
        Ok(IpNet::V4(range)) => Ok(range),
        Ok(IpNet::V6(_)) => Err(format!("IPv4 only for now: {LIKE}")),
        Err(_) => Err(format!("no range of addresses: {LIKE}")),
    }
}

/// A number of Pods as flags spell it.
pub fn pods(text: &str) -> Result<u32, String> {
    let number = text.parse().ok().filter(|n| *n > 0);
    number.ok_or_else(|| format!("must be a number from 1 to {}, such as 110", u32::MAX))
}

/// The key of the configuration file whose value cannot be read.
fn wrong_key(text: &str) -> Option<String> {
    let all: serde_json::Map<String, serde_json::Value> = serde_saphyr::from_str(text).ok()?;
    let is_wrong = |key: &String, value| {
        let one = serde_json::Map::from_iter([(key.clone(), value)]);
        serde_json::from_value::<ConfigFile>(one.into()).is_err()
    };
    all.into_iter().find_map(|(key, value)| is_wrong(&key, value).then_some(key))
}

fn optional_range<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Ipv4Net>, D::Error> {
    let parse = |text: String| range(&text).map_err(|why| D::Error::custom(format!("{text:?}: {why}")));
    Option::<String>::deserialize(deserializer)?.map(parse).transpose()
}

/// What a run of the cluster goes by. Kept in the data directory for the commands that find the
/// cluster again.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Settings {
    /// The directory that these were written for: what the cluster has on its host is named after it.
    #[serde(default)]
    pub data_dir: PathBuf,
    pub listen: SocketAddr,
    pub node_name: String,
    pub pod_cidr: Ipv4Net,
    pub service_cidr: Ipv4Net,
    pub registries: Option<PathBuf>,
    pub max_pods: u32,
    /// Containers without a seccomp profile of their own get RuntimeDefault. Upstream's default
    /// is Unconfined.
    pub seccomp_default: bool,
    /// How much history of its objects the store keeps: watches resume and pages continue within it.
    #[serde(default = "five_minutes_s")]
    pub compaction_interval_seconds: u32,
    /// Names of admission plugins that differ from upstream's defaults.
    #[serde(default)]
    pub enable_admission_plugins: Vec<String>,
    #[serde(default)]
    pub disable_admission_plugins: Vec<String>,
    /// What Pods are held to where the labels of their namespace say nothing, and who is exempt.
    #[serde(default)]
    pub pod_security: PodSecurityConfiguration,
}

/// Upstream's default of `--etcd-compaction-interval`.
fn five_minutes_s() -> u32 {
    300
}

impl Settings {
    pub fn admission(&self) -> Plugins {
        Plugins {
            enable: self.enable_admission_plugins.clone(),
            disable: self.disable_admission_plugins.clone(),
            pod_security: self.pod_security.clone(),
        }
    }

    /// The first address of the service range: `kubernetes.default`.
    pub fn api_service_ip(&self) -> Ipv4Addr {
        nth(self.service_cidr, 1)
    }

    /// The tenth: the cluster's DNS server.
    pub fn dns_service_ip(&self) -> Ipv4Addr {
        nth(self.service_cidr, 10)
    }

    /// The first address of the Pod range: the bridge's own.
    pub fn gateway(&self) -> Ipv4Addr {
        nth(self.pod_cidr, 1)
    }

    /// The instance that the data directory belonged to at another place.
    pub fn former(&self, instance: &Instance) -> Option<Instance> {
        let elsewhere = !self.data_dir.as_os_str().is_empty() && !self.data_dir.exists();
        Instance::at(&self.data_dir).ok().filter(|former| elsewhere && former.id != instance.id)
    }

    pub fn path(instance: &Instance) -> PathBuf {
        instance.path("settings.json")
    }

    pub fn load(instance: &Instance) -> Result<Option<Self>> {
        match std::fs::read(Settings::path(instance)) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes).context("settings.json")?)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).context("settings.json"),
        }
    }

    pub fn save(&self, instance: &Instance) -> Result<()> {
        let path = Settings::path(instance);
        let text = serde_json::to_vec_pretty(self)?;
        // A cluster that is started as it was needs no room on its disk for that.
        if std::fs::read(&path).is_ok_and(|now| now == text) {
            return Ok(());
        }
        let unfinished = instance.path("settings.json.new");
        std::fs::write(&unfinished, text)
            .and_then(|()| std::fs::rename(&unfinished, &path))
            .with_context(|| format!("write {}", path.display()))
    }
}

fn nth(cidr: Ipv4Net, n: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(cidr.network()) + n)
}

/// Combines and checks.
pub fn resolve(flags: &Up, instance: &Instance) -> Result<Settings> {
    let file = match &flags.config {
        None => ConfigFile::default(),
        Some(path) => {
            let text = match std::fs::read_to_string(path) {
                Ok(text) => text,
                Err(error) => refuse!("--config {}: the file cannot be read: {error}", path.display()),
            };
            match serde_saphyr::from_str(&text) {
                Ok(file) => file,
                Err(error) => {
                    let key = wrong_key(&text).unwrap_or_default();
                    let separator = if key.is_empty() { "" } else { ": " };
                    let why =
                        error.without_snippet().render_with_formatter(&serde_saphyr::UserMessageFormatter);
                    let like = EXAMPLE.lines().find(|line| line.starts_with(&key)).unwrap_or_default();
                    refuse!("--config {}: {key}{separator}{why}: write such as `{like}`", path.display())
                }
            }
        }
    };
    let kept = Settings::load(instance)?;
    let default_cidr = |text: &str| text.parse::<Ipv4Net>().context("a built-in range");
    let kept_or = |pick: fn(&Settings) -> Ipv4Net, text: &str| {
        kept.as_ref().map(pick).map_or_else(|| default_cidr(text), Ok)
    };
    if let Some(former) = kept.as_ref().and_then(|kept| kept.former(instance))
        && former.is_on_host()
    {
        refuse!(
            "--data-dir {} was at {} when the cluster ran last, and its Pods and links are named after that: move it back, or remove them with `skeg down --purge --data-dir {}`",
            instance.data_dir.display(),
            former.data_dir.display(),
            former.data_dir.display()
        );
    }
    let settings = Settings {
        data_dir: instance.data_dir.clone(),
        listen: flags
            .listen
            .or(file.listen)
            .or(kept.as_ref().map(|kept| kept.listen))
            .unwrap_or(SocketAddr::from(([127, 0, 0, 1], 6443))),
        node_name: match flags
            .node_name
            .clone()
            .or(file.node_name)
            .or(kept.as_ref().map(|kept| kept.node_name.clone()))
        {
            Some(name) => name,
            None => host_name()?,
        },
        pod_cidr: flags
            .pod_cidr
            .or(file.pod_cidr)
            .map_or_else(|| kept_or(|kept| kept.pod_cidr, "10.42.0.0/16"), Ok)?,
        service_cidr: flags
            .service_cidr
            .or(file.service_cidr)
            .map_or_else(|| kept_or(|kept| kept.service_cidr, "10.43.0.0/16"), Ok)?,
        registries: flags.registries.clone().or(file.registries).map(std::path::absolute).transpose()?,
        max_pods: flags.max_pods.or(file.max_pods).unwrap_or(110),
        seccomp_default: file.seccomp_default.unwrap_or(true),
        compaction_interval_seconds: file.compaction_interval_seconds.unwrap_or_else(five_minutes_s),
        enable_admission_plugins: file.enable_admission_plugins,
        disable_admission_plugins: file.disable_admission_plugins,
        pod_security: file.pod_security,
    };
    check(&settings)?;
    if let Some(kept) = kept {
        for (flag, old, new) in [
            ("--pod-cidr", kept.pod_cidr, settings.pod_cidr),
            ("--service-cidr", kept.service_cidr, settings.service_cidr),
        ] {
            if old != new {
                refuse!(
                    "{flag} {new}: the cluster in {} was made with {old}; use that, or another --data-dir",
                    instance.data_dir.display()
                );
            }
        }
    }
    Ok(settings)
}

fn host_name() -> Result<String> {
    Ok(nix::unistd::gethostname().context("the host name")?.to_string_lossy().to_lowercase())
}

fn check(settings: &Settings) -> Result<()> {
    if let Some(why) = skeg_api::names::is_dns1123_subdomain(&settings.node_name).into_iter().next() {
        refuse!("--node-name {:?}: {why}", settings.node_name);
    }
    if settings.listen.port() == 0 {
        refuse!("--listen {}: name a port, so that clients find it", settings.listen);
    }
    let (pods, services) = (settings.pod_cidr, settings.service_cidr);
    if pods.prefix_len() > 28 {
        refuse!("--pod-cidr {pods}: a range of at least 16 addresses is needed, /28 or wider");
    }
    if services.prefix_len() > 27 || services.prefix_len() < 12 {
        refuse!("--service-cidr {services}: a range between /12 and /27 is needed");
    }
    for (flag, range) in [("--pod-cidr", pods), ("--service-cidr", services)] {
        if range.addr() != range.network() {
            refuse!("{flag} {range}: the range begins at {}", range.trunc());
        }
        let first = range.network();
        if first.is_multicast() || first.is_loopback() || first.octets()[0] == 0 || first.octets()[0] >= 240 {
            refuse!("{flag} {range}: no host can have an address of it: name a private range");
        }
    }
    if pods.contains(&services) || services.contains(&pods) {
        refuse!("--pod-cidr {pods} and --service-cidr {services} overlap: choose ranges that do not");
    }
    if settings.max_pods == 0 {
        refuse!("--max-pods 0: a node takes at least one Pod");
    }
    if settings.compaction_interval_seconds == 0 {
        refuse!("compactionIntervalSeconds 0: the store keeps at least one second of history");
    }
    if let Some(name) = settings.admission().unknown().next() {
        let known = SWITCHABLE.join(", ");
        refuse!("enableAdmissionPlugins, disableAdmissionPlugins: no plugin {name:?}; there are {known}");
    }
    if let Some(wrong) = settings.pod_security.validate(&Path::new("podSecurity")).first() {
        refuse!("{}: {}", wrong.path, wrong.message());
    }
    if let Some(path) = settings.registries.as_ref().filter(|path| !path.is_file()) {
        refuse!(
            "--registries {}: there is no such file: name a registries.yaml, or leave it out",
            path.display()
        );
    }
    if let Some(path) = &settings.registries
        && let Err(error) = skeg_images::Registries::load(path)
    {
        refuse!("--registries {}: {error}", path.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::UserError;

    fn resolve_flags(flags: &Up) -> Result<Settings> {
        let directory = tempfile::tempdir().unwrap();
        resolve(flags, &Instance::at(directory.path()).unwrap())
    }

    #[test]
    fn defaults_are_upstreams_or_documented() {
        let settings = resolve_flags(&Up { node_name: Some("n".into()), ..Up::default() }).unwrap();
        assert_eq!(settings.listen.to_string(), "127.0.0.1:6443");
        assert_eq!(settings.api_service_ip().to_string(), "10.43.0.1");
        assert_eq!(settings.dns_service_ip().to_string(), "10.43.0.10");
        assert_eq!(settings.gateway().to_string(), "10.42.0.1");
        assert!(settings.seccomp_default);
    }

    #[test]
    fn bad_settings_are_told_with_their_flag() {
        let cidr = |text: &str| Some(text.parse().unwrap());
        for (flags, part) in [
            (
                Up { pod_cidr: cidr("10.0.0.0/8"), service_cidr: cidr("10.9.0.0/16"), ..Up::default() },
                "overlap",
            ),
            (Up { pod_cidr: cidr("10.0.0.0/30"), ..Up::default() }, "--pod-cidr"),
            (
                Up { pod_cidr: cidr("10.0.0.5/16"), ..Up::default() },
                "--pod-cidr 10.0.0.5/16: the range begins at 10.0.0.0/16",
            ),
            (Up { pod_cidr: cidr("224.0.0.0/16"), ..Up::default() }, "--pod-cidr 224.0.0.0/16: no host"),
            (
                Up { service_cidr: cidr("127.0.0.0/16"), ..Up::default() },
                "--service-cidr 127.0.0.0/16: no host",
            ),
            (Up { service_cidr: cidr("10.0.0.0/30"), ..Up::default() }, "--service-cidr"),
            (Up { node_name: Some("Not_A_Name".into()), ..Up::default() }, "--node-name"),
            (Up { max_pods: Some(0), ..Up::default() }, "--max-pods"),
            (Up { config: Some("/no/such/file".into()), ..Up::default() }, "--config"),
            (
                Up { registries: Some("/no/such/file".into()), ..Up::default() },
                "--registries /no/such/file: there is no such file: name a registries.yaml",
            ),
        ] {
            let flags = Up { node_name: flags.node_name.clone().or(Some("n".into())), ..flags };
            let error = resolve_flags(&flags).unwrap_err();
            assert!(error.downcast_ref::<UserError>().is_some_and(|e| e.0.contains(part)), "{error}");
        }
    }

    #[test]
    fn a_bad_entry_of_the_file_is_told_with_its_reason() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.yaml");
        for (text, part) in [
            ("podCird: 10.9.0.0/16", "unknown field `podCird`"),
            ("maxPods: 3\npodCidr: fd00::/64", "\"fd00::/64\": IPv4 only for now: name a range such as"),
            ("serviceCidr: 10.0.0.0", "\"10.0.0.0\": no range of addresses: name a range such as"),
            ("maxPods: many", "line 1, column 10: write such as `maxPods: 110`"),
            ("nodeName: n\nmaxPods: \"x\"", ": maxPods: "),
            ("maxPods: 3\nmaxPods: 4", "duplicate mapping key"),
            ("root:x:0:0:secret", "expected mapping"),
            ("podSecurity: x", "`podSecurity: {defaults: {enforce: baseline}}`"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = resolve_flags(&Up { config: Some(path.clone()), ..Up::default() }).unwrap_err();
            let UserError(said) = error.downcast_ref().unwrap();
            assert!(
                said.starts_with(&format!("--config {}: ", path.display())) && said.contains(part),
                "{said}"
            );
            assert!(!said.contains("secret") && !said.contains("DuplicateKeyPolicy"), "{said}");
        }
        assert_eq!(range("10.0.0.0/8").unwrap().to_string(), "10.0.0.0/8");
        serde_saphyr::from_str::<ConfigFile>(EXAMPLE).unwrap();
    }

    #[test]
    fn bad_entries_name_the_plugins_there_are() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.yaml");
        let resolve = |text: &str| {
            std::fs::write(&path, text).unwrap();
            resolve_flags(&Up { config: Some(path.clone()), node_name: Some("n".into()), ..Up::default() })
        };
        let error = resolve("enableAdmissionPlugins: [Nothing]").unwrap_err();
        let UserError(said) = error.downcast_ref().unwrap();
        assert!(said.contains("no plugin \"Nothing\"; there are NamespaceLifecycle, LimitRanger"), "{said}");
        let settings = resolve("disableAdmissionPlugins: [PodSecurity]").unwrap();
        assert_eq!(settings.admission().disable, ["PodSecurity"]);
    }

    #[test]
    fn pod_security_is_configured_as_upstreams_file_does() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.yaml");
        let resolve = |text: &str| {
            std::fs::write(&path, format!("podSecurity:\n  {}", text.replace('\n', "\n  "))).unwrap();
            resolve_flags(&Up { config: Some(path.clone()), node_name: Some("n".into()), ..Up::default() })
        };
        for (text, part) in [
            (
                "defaults:\n  enforce: strict",
                "podSecurity.defaults.enforce: Invalid value: \"strict\": must be one of privileged, baseline, restricted",
            ),
            ("defaults: {enforced: baseline}", "unknown field `enforced`"),
            (
                "exemptions: {namespaces: [a, a]}",
                "podSecurity.exemptions.namespaces[1]: Duplicate value: \"a\"",
            ),
        ] {
            let error = resolve(text).unwrap_err();
            let UserError(said) = error.downcast_ref().unwrap();
            assert!(said.contains(part), "{said}");
        }
        let text = "apiVersion: pod-security.admission.config.k8s.io/v1\nkind: PodSecurityConfiguration\n\
            defaults:\n  enforce: baseline\n  enforce-version: latest\nexemptions:\n  usernames: []\n  namespaces: [kube-system]";
        let settings = resolve(text).unwrap();
        assert_eq!(settings.admission().pod_security, settings.pod_security);
        let again: Settings = serde_json::from_slice(&serde_json::to_vec(&settings).unwrap()).unwrap();
        assert_eq!(again, settings);
        assert_ne!(settings.pod_security, PodSecurityConfiguration::default());
    }

    #[test]
    fn the_ranges_of_a_cluster_do_not_change() {
        let directory = tempfile::tempdir().unwrap();
        let instance = Instance::at(directory.path()).unwrap();
        let flags = Up {
            node_name: Some("n".into()),
            pod_cidr: Some("10.77.0.0/16".parse().unwrap()),
            ..Up::default()
        };
        resolve(&flags, &instance).unwrap().save(&instance).unwrap();
        let again = resolve(&Up::default(), &instance).unwrap();
        assert_eq!(again.pod_cidr.to_string(), "10.77.0.0/16");
        let other = Up { pod_cidr: Some("10.78.0.0/16".parse().unwrap()), ..Up::default() };
        assert!(resolve(&other, &instance).unwrap_err().to_string().contains("was made with 10.77.0.0/16"));
    }
}
