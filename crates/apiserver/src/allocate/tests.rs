use super::markers::MARKERS;
use super::*;
use crate::admission::testing::kind;
use skeg_store::{Expect, Memory, Write};

fn service(name: &str, spec: Value) -> Value {
    json!({"metadata": {"name": name, "namespace": "a"}, "spec": spec})
}

struct World {
    store: Arc<dyn Store>,
    kinds: Kinds,
    allocator: ServiceAllocator,
}

async fn world(range: &str) -> World {
    let store: Arc<dyn Store> = Arc::new(Memory::new());
    let kinds = Kinds::new([kind("", "Service", "services", true)]);
    let addresses =
        Addresses::open(store.clone(), &kinds, Random::seeded(1), range.parse().unwrap()).await.unwrap();
    World { store, kinds, allocator: ServiceAllocator(addresses) }
}

impl World {
    async fn create(&self, name: &str, spec: Value) -> Result<Value, Status> {
        let mut object = service(name, spec);
        let kind = kind("", "Service", "services", true);
        let held = self.allocator.begin(Operation::Create, &kind, &mut object, None, false).await?;
        held.unwrap().finish(true);
        Ok(object)
    }

    async fn markers(&self) -> usize {
        self.store.list(MARKERS, None, None, 0).await.unwrap().records.len()
    }

    async fn markers_become(&self, expected: usize) {
        let wait = async {
            while self.markers().await != expected {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(5), wait).await.unwrap();
    }
}

#[tokio::test]
async fn a_load_balancer_has_its_health_checked_also_without_node_ports() {
    let world = world("10.96.0.0/24").await;
    let spec = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local",
        "allocateLoadBalancerNodePorts": false, "ports": [{"port": 80}]});
    let made = world.create("lb", spec.clone()).await.unwrap();
    let port = made["spec"]["healthCheckNodePort"].clone();
    assert!(port.as_i64().is_some_and(|port| port > 0) && made["spec"]["ports"][0]["nodePort"].is_null());
    // It is held like a node port.
    let mut other = spec;
    other["healthCheckNodePort"] = port.clone();
    assert_eq!(world.create("other", other.clone()).await.unwrap_err().code, 422);
    // It goes with what it is for, whether that is the policy or the type.
    for (field, value) in [("externalTrafficPolicy", "Cluster"), ("type", "NodePort")] {
        let mut new = made.clone();
        new["spec"][field] = value.into();
        let kind = kind("", "Service", "services", true);
        let held = world.allocator.begin(Operation::Update, &kind, &mut new, Some(&made), true).await;
        assert!(held.unwrap().is_none() && new["spec"].get("healthCheckNodePort").is_none(), "{new}");
    }
    let mut new = made.clone();
    new["spec"]["externalTrafficPolicy"] = "Cluster".into();
    let kind = kind("", "Service", "services", true);
    let held = world.allocator.begin(Operation::Update, &kind, &mut new, Some(&made), false).await;
    held.unwrap().unwrap().finish(true);
    world.markers_become(1).await;
    world.create("other", other).await.unwrap();
}

#[tokio::test]
async fn addresses_are_given_once() {
    let world = world("10.96.0.0/29").await;
    let mut seen = BTreeSet::new();
    for i in 0..6 {
        let service = world.create(&format!("s{i}"), json!({})).await.unwrap();
        let ip = service["spec"]["clusterIP"].as_str().unwrap().to_owned();
        assert_eq!(service["spec"]["clusterIPs"], json!([ip]));
        assert_eq!(service["spec"]["ipFamilies"], json!(["IPv4"]));
        assert!(seen.insert(ip));
    }
    assert_eq!(world.create("full", json!({})).await.unwrap_err().code, 500);
    assert_eq!(world.markers().await, 6);
    let taken = seen.first().unwrap().clone();
    let status = world.create("x", json!({"clusterIP": taken})).await.unwrap_err();
    assert_eq!(
        status.message,
        format!(
            "Service \"x\" is invalid: spec.clusterIPs: Invalid value: [\"{taken}\"]: failed to allocate IP {taken}: \
             provided IP is already allocated"
        )
    );
    let status = world.create("x", json!({"clusterIP": "10.0.0.1"})).await.unwrap_err();
    assert!(
        status.message.contains("is not in the valid range. The range of valid IPs is 10.96.0.0/29"),
        "{status}"
    );
    let kind = kind("", "Service", "services", true);
    world.allocator.deleted(&kind, &service("x", json!({"clusterIP": taken, "clusterIPs": [taken]})));
    world.markers_become(5).await;
    assert_eq!(world.create("again", json!({})).await.unwrap()["spec"]["clusterIP"], taken.as_str());
    for free in [json!({"clusterIP": "None"}), json!({"type": "ExternalName"})] {
        world.create("free", free).await.unwrap();
    }
    assert_eq!(world.markers().await, 6);
}

#[tokio::test]
async fn a_write_that_fails_gives_back_and_a_dry_run_keeps_nothing() {
    let world = world("10.96.0.0/24").await;
    let kind = kind("", "Service", "services", true);
    for dry_run in [true, false] {
        let mut object = service("x", json!({"type": "NodePort", "ports": [{"port": 80}]}));
        let held = world.allocator.begin(Operation::Create, &kind, &mut object, None, dry_run).await.unwrap();
        assert!(object["spec"]["ports"][0]["nodePort"].is_number());
        if let Some(held) = held {
            held.finish(false);
        }
        world.markers_become(0).await;
    }
    // One refused port takes the others along.
    world.create("a", json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}]})).await.unwrap();
    let spec = json!({"type": "NodePort", "ports": [{"port": 1, "nodePort": 30081}, {"port": 2, "nodePort": 30080}]});
    let status = world.create("b", spec).await.unwrap_err();
    assert_eq!(
        status.message,
        "Service \"b\" is invalid: spec.ports[1].nodePort: Invalid value: 30080: provided port is already allocated"
    );
    world.markers_become(2).await;
    let spec = json!({"type": "NodePort", "ports": [{"port": 1, "nodePort": 80}]});
    assert!(
        world
            .create("c", spec)
            .await
            .unwrap_err()
            .message
            .contains("The range of valid ports is 30000-32767")
    );
}

#[tokio::test]
async fn updates_keep_and_release() {
    let world = world("10.96.0.0/24").await;
    let kind = kind("", "Service", "services", true);
    let old = world.create("x", json!({"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP"}, {"port": 80, "protocol": "UDP"}]})).await.unwrap();
    assert_eq!(old["spec"]["ports"][0]["nodePort"], old["spec"]["ports"][1]["nodePort"]);
    assert_eq!(world.markers().await, 2);
    let mut new =
        service("x", json!({"type": "NodePort", "ports": [{"port": 80}, {"port": 80, "protocol": "UDP"}]}));
    world
        .allocator
        .begin(Operation::Update, &kind, &mut new, Some(&old), false)
        .await
        .unwrap()
        .unwrap()
        .finish(true);
    assert_eq!(new["spec"]["ports"][0]["nodePort"], old["spec"]["ports"][0]["nodePort"]);
    assert_eq!(new["spec"]["clusterIP"], old["spec"]["clusterIP"]);
    assert_eq!(world.markers().await, 2);
    let mut plain = new.clone();
    plain["spec"]["type"] = "ClusterIP".into();
    world
        .allocator
        .begin(Operation::Update, &kind, &mut plain, Some(&new), false)
        .await
        .unwrap()
        .unwrap()
        .finish(true);
    assert!(plain["spec"]["ports"][0].get("nodePort").is_none());
    world.markers_become(1).await;
    let mut external = service("x", json!({"type": "ExternalName", "externalName": "x.y"}));
    world
        .allocator
        .begin(Operation::Update, &kind, &mut external, Some(&plain), false)
        .await
        .unwrap()
        .unwrap()
        .finish(true);
    world.markers_become(0).await;
}

#[tokio::test]
async fn opening_repairs_what_a_crash_left() {
    let world = world("10.96.0.0/24").await;
    world.create("lost", json!({})).await.unwrap();
    assert_eq!(world.markers().await, 1);
    let object = json!({"kind": "Service", "metadata": {"name": "x", "namespace": "a"}, "spec": {"clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"]}});
    let value = Some(record::encode("v1", &object).unwrap());
    let key = "/registry/services/a/x".into();
    world.store.write(Write { key, expect: Expect::Absent, value, ttl: None }).await.unwrap();
    let range = "10.96.0.0/24".parse().unwrap();
    let again = Addresses::open(world.store.clone(), &world.kinds, Random::seeded(2), range).await.unwrap();
    assert_eq!(world.markers().await, 1);
    let world = World { allocator: ServiceAllocator(again), ..world };
    assert_eq!(world.create("y", json!({"clusterIP": "10.96.0.9"})).await.unwrap_err().code, 422);
}

#[tokio::test]
async fn many_at_once_get_different_addresses() {
    let world = Arc::new(world("10.96.0.0/24").await);
    let mut tasks = tokio::task::JoinSet::new();
    for i in 0..100 {
        let world = world.clone();
        tasks.spawn(async move {
            world.create(&format!("s{i}"), json!({})).await.unwrap()["spec"]["clusterIP"].to_string()
        });
    }
    let ips: BTreeSet<String> = tasks.join_all().await.into_iter().collect();
    assert_eq!((ips.len(), world.markers().await), (100, 100));
}
