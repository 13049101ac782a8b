//! A kind registered while everything runs, from one end to the other: API server and controllers
//! as they are wired in the product, on virtual time.

use http::Method;
use serde_json::{Value, json};
use skeg_api::kinds::{Cell, Column, Kind};
use skeg_api::schema::Schema;
use skeg_api::{Gvk, Gvr, Kinds};
use skeg_apiserver::assembly::{self, Setup};
use skeg_apiserver::{ApiServer, Identity, bootstrap};
use skeg_base::{Clock, Random};
use skeg_client::{Client, EventKind, Informers, ListOptions, RawRequest, WatchOptions};
use skeg_controllers::{Config, ControllerContext, Controllers};
use skeg_store::Memory;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Virtual time within which something must have happened: longer than every wait of a controller.
const PATIENCE: Duration = Duration::from_secs(120);
const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const WIDGETS: &str = "/apis/example.com/v1/namespaces/default/widgets";

fn custom(kind: &str, plural: &str) -> Kind {
    let schema = json!({"type": "object", "description": "Something to count.", "properties": {
        "spec": {"type": "object", "properties": {"size": {"type": "integer", "description": "How large it is."}}}}});
    let schema = Schema::from_openapi(kind, &schema).unwrap();
    Kind {
        short_names: vec!["wd".into()],
        columns: vec![Column {
            name: "Size".into(),
            kind: "integer",
            format: "",
            description: "How large it is.".into(),
            priority: 0,
            cell: Cell::Path("spec.size".into()),
        }],
        ..Kind::custom(Gvk::new("example.com", "v1", kind), plural, schema)
    }
}

struct Cluster {
    server: Arc<ApiServer>,
    client: Client,
    controllers: Controllers,
    cancel: CancellationToken,
}

impl Cluster {
    async fn start() -> Self {
        let clock = Clock::simulated("2026-01-01T00:00:00Z".parse().unwrap());
        let random = Random::seeded(1);
        let setup = Setup {
            edge: None,
            cluster_domain: "cluster.local".into(),
            admission: Default::default(),
            bootstrap: bootstrap::Settings {
                service_range: "10.0.0.0/24".parse().unwrap(),
                service_ip: [10, 0, 0, 1].into(),
                endpoints: vec![[10, 1, 0, 1].into()],
                port: 6443,
            },
        };
        let kinds = Arc::new(Kinds::new(skeg_api::builtin::builtin()));
        let opened = assembly::open(setup, kinds, Arc::new(Memory::new()), clock, random.fork()).await;
        let server = opened.unwrap().server;
        let client =
            |identity: Identity, name: &str| Client::new(server.client_service(identity)).named(name);
        let cancel = CancellationToken::new();
        let reader =
            client(Identity::system("system:kube-controller-manager", &[]), "kube-controller-manager");
        let of = server.clone();
        let ctx = ControllerContext {
            clients: Arc::new(move |component| {
                Client::new(of.client_service(Identity::component(component))).named(component)
            }),
            informers: Informers::new(reader, random.fork(), cancel.clone()),
            clock,
            random,
            config: Config::default(),
            kinds: server.kinds().clone(),
            cancel: cancel.clone(),
        };
        let controllers = skeg_controllers::start(&ctx);
        let client = client(Identity::system("admin", &["system:masters"]), "kubectl");
        Cluster { server, client, controllers, cancel }
    }

    async fn send(&self, method: Method, path: &str, body: Value) -> Value {
        let body = body.to_string().into();
        let request = RawRequest { body, ..RawRequest::new(method, path) };
        self.client.json(&request).await.unwrap()
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        self.send(Method::POST, path, body).await
    }

    async fn get(&self, path: &str) -> Value {
        self.client.json(&RawRequest::get(path)).await.unwrap()
    }

    async fn get_as(&self, path: &str, accept: &'static str) -> Value {
        self.client.json(&RawRequest { accept, ..RawRequest::get(path) }).await.unwrap()
    }

    async fn is_there(&self, path: &str) -> bool {
        match self.client.bytes(&RawRequest::get(path)).await {
            Ok(_) => true,
            Err(error) if error.code() == Some(404) => false,
            Err(error) => panic!("{path}: {error}"),
        }
    }

    /// Waits until the object is gone.
    async fn gone(&self, path: &str) {
        let look = async {
            while self.is_there(path).await {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::time::timeout(PATIENCE, look).await.unwrap_or_else(|_| panic!("{path} is still there"));
    }

    async fn stop(self) {
        self.cancel.cancel();
        self.controllers.join().await;
        self.server.stop().await;
    }
}

/// A list of one owner, as `metadata.ownerReferences` has it.
fn owned_by(owner: &Value) -> Value {
    json!([{"apiVersion": owner["apiVersion"], "kind": owner["kind"],
        "name": owner["metadata"]["name"], "uid": owner["metadata"]["uid"]}])
}

fn object(api_version: &str, kind: &str, name: &str, owners: &Value) -> Value {
    json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": name, "ownerReferences": owners}})
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|item| item["name"].as_str().unwrap()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_kind_registered_later_is_served_and_collected() {
    let cluster = Cluster::start().await;
    // The collector works already, with the kinds there are.
    let nobody = json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "never", "uid": "none"}]);
    cluster.post(MAPS, object("v1", "ConfigMap", "stray", &nobody)).await;
    cluster.gone(&format!("{MAPS}/stray")).await;
    assert!(!cluster.is_there("/apis/example.com/v1").await);
    // One kind that can never be listed holds up none that comes after it.
    let kinds = cluster.server.kinds();
    kinds.insert(Kind { storage: None, ..custom("Broken", "brokens") });
    tokio::time::sleep(PATIENCE).await;
    kinds.insert(custom("Widget", "widgets"));

    // Discovery per group, and aggregated.
    assert!(names(&cluster.get("/apis").await["groups"]).contains(&"example.com"));
    let resources = cluster.get("/apis/example.com/v1").await;
    assert!(names(&resources["resources"]).contains(&"widgets"), "{resources}");
    let aggregated = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let groups = cluster.get_as("/apis", aggregated).await;
    let group = groups["items"].as_array().unwrap().iter().find(|g| g["metadata"]["name"] == "example.com");
    let resources = group.unwrap()["versions"][0]["resources"].as_array().unwrap();
    let widgets = resources.iter().find(|resource| resource["resource"] == "widgets").unwrap();
    assert_eq!((&widgets["scope"], &widgets["shortNames"]), (&json!("Namespaced"), &json!(["wd"])));

    // OpenAPI: the index, and the group's document with what `kubectl explain` looks for.
    let index = cluster.get("/openapi/v3").await;
    let url = index["paths"]["apis/example.com/v1"]["serverRelativeURL"].as_str().unwrap();
    let document = cluster.get(url).await;
    let schemas = document["components"]["schemas"].as_object().unwrap();
    let gvk = json!([{"group": "example.com", "version": "v1", "kind": "Widget"}]);
    let schema = schemas.values().find(|schema| schema["x-kubernetes-group-version-kind"] == gvk).unwrap();
    assert_eq!(schema["properties"]["spec"]["properties"]["size"]["description"], "How large it is.");
    assert_eq!(
        document["paths"][&WIDGETS.replace("default", "{namespace}")]["get"]["x-kubernetes-action"],
        "list"
    );

    // List, watch, Table, metadata.
    let list = cluster.get(WIDGETS).await;
    assert_eq!((&list["kind"], &list["items"]), (&json!("WidgetList"), &json!([])));
    let api = cluster.client.dynamic(&Gvr::new("example.com", "v1", "widgets"));
    let version = list["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let from = ListOptions { resource_version: version, ..Default::default() };
    let options = WatchOptions { list: from, ..Default::default() };
    let mut watch = api.watch("default", &options).await.unwrap();
    let widget = json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "w"}, "spec": {"size": 3}});
    let owner = cluster.post(WIDGETS, widget).await;
    let event = watch.next().await.unwrap().unwrap();
    assert_eq!(event.kind, EventKind::Added);
    assert_eq!(serde_json::from_slice::<Value>(&event.object).unwrap(), owner);
    assert_eq!(cluster.get(WIDGETS).await["items"], json!([owner]));
    let table = cluster.get_as(WIDGETS, "application/json;as=Table;v=v1;g=meta.k8s.io").await;
    assert_eq!(table["columnDefinitions"][0]["name"], "Size");
    assert_eq!(table["rows"][0]["cells"], json!([3]));

    // Garbage collection, with the new kind as the owner and as the dependent.
    cluster.post(MAPS, object("v1", "ConfigMap", "of-widget", &owned_by(&owner))).await;
    let map = cluster.post(MAPS, object("v1", "ConfigMap", "owner", &json!([]))).await;
    cluster.post(WIDGETS, object("example.com/v1", "Widget", "of-map", &owned_by(&map))).await;
    cluster.post(WIDGETS, object("example.com/v1", "Widget", "stray", &nobody)).await;
    cluster.gone(&format!("{WIDGETS}/stray")).await;
    assert!(cluster.is_there(&format!("{MAPS}/of-widget")).await);
    assert!(cluster.is_there(&format!("{WIDGETS}/of-map")).await);
    cluster.send(Method::DELETE, &format!("{WIDGETS}/w"), json!({})).await;
    cluster.send(Method::DELETE, &format!("{MAPS}/owner"), json!({})).await;
    cluster.gone(&format!("{MAPS}/of-widget")).await;
    cluster.gone(&format!("{WIDGETS}/of-map")).await;

    // A namespace is emptied of it too.
    cluster.post("/api/v1/namespaces", json!({"metadata": {"name": "team"}})).await;
    let there = WIDGETS.replace("default", "team");
    cluster.post(&there, object("example.com/v1", "Widget", "last", &json!([]))).await;
    cluster.send(Method::DELETE, "/api/v1/namespaces/team", json!({})).await;
    cluster.gone("/api/v1/namespaces/team").await;
    assert_eq!(cluster.get("/apis/example.com/v1/widgets").await["items"], json!([]));

    // And it goes again.
    cluster.server.kinds().remove(&Gvr::new("example.com", "v1", "widgets"));
    assert!(!cluster.is_there(WIDGETS).await);
    assert_eq!(names(&cluster.get("/apis/example.com/v1").await["resources"]), ["brokens"]);
    cluster.stop().await;
}
