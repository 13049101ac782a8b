//! Objects that a cluster has from its first moment and that follow what it does.

use crate::access::cluster;
use crate::aggregation::{comes_back, until};
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flow_control_and_the_range_of_services_are_there_and_come_back() {
    let cluster = cluster().await;
    let admin = cluster.admin();
    let flow = "/apis/flowcontrol.apiserver.k8s.io/v1";
    let names = |list: &Value| {
        let items = list["items"].as_array().unwrap().iter();
        items.map(|item| item["metadata"]["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>().join(" ")
    };
    let levels = cluster.get(&admin, &format!("{flow}/prioritylevelconfigurations")).await.expect(200);
    assert_eq!(
        names(&levels),
        "catch-all exempt global-default leader-election node-high system workload-high workload-low"
    );
    let schemas = cluster.get(&admin, &format!("{flow}/flowschemas")).await.expect(200);
    assert_eq!(
        names(&schemas),
        "catch-all endpoint-controller exempt global-default kube-controller-manager kube-scheduler \
         kube-system-service-accounts probes service-accounts system-leader-election system-node-high system-nodes \
         workload-leader-election"
    );
    for schema in schemas["items"].as_array().unwrap() {
        let condition = &schema["status"]["conditions"][0];
        assert_eq!(
            (&condition["type"], &condition["status"]),
            (&json!("Dangling"), &json!("False")),
            "{schema}"
        );
        assert!(condition["lastTransitionTime"].is_string());
    }
    let mine = json!({"apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "FlowSchema", "metadata": {"name": "mine"},
        "spec": {"priorityLevelConfiguration": {"name": "mine"}, "matchingPrecedence": 1000}});
    cluster.create(&format!("{flow}/flowschemas"), mine).await;
    let dangling =
        |status: &'static str| move |_: u16, now: &Value| now["status"]["conditions"][0]["status"] == status;
    let path = format!("{flow}/flowschemas/mine");
    let now = until(&cluster, &path, &[], dangling("True")).await;
    assert_eq!(
        now["status"]["conditions"][0]["message"],
        "This FlowSchema references the PriorityLevelConfiguration object named \"mine\" but there is no such object"
    );
    let level = json!({"apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "PriorityLevelConfiguration",
        "metadata": {"name": "mine"}, "spec": {"type": "Limited", "limited": {"limitResponse": {"type": "Reject"}}}});
    cluster.create(&format!("{flow}/prioritylevelconfigurations"), level).await;
    until(&cluster, &path, &[], dangling("False")).await;
    let range = "/apis/networking.k8s.io/v1/servicecidrs/kubernetes";
    let got = cluster.get(&admin, range).await.expect(200);
    assert_eq!(
        (&got["spec"]["cidrs"], &got["status"]["conditions"][0]["status"]),
        (&json!(["10.96.0.0/16"]), &json!("True"))
    );
    let map = "/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication";
    for path in [
        format!("{flow}/flowschemas/exempt"),
        format!("{flow}/prioritylevelconfigurations/catch-all"),
        range.into(),
        map.into(),
    ] {
        comes_back(&cluster, &path).await;
    }
    let path = format!("{flow}/flowschemas/exempt");
    let mut exempt = cluster.get(&admin, &path).await.expect(200);
    exempt["spec"]["matchingPrecedence"] = 7.into();
    let answer = cluster.send(&admin, "PUT", &path, exempt).await;
    assert!(answer.warnings()[0].contains("requests are not queued by flow"), "{:?}", answer.warnings());
    until(&cluster, &path, &[], |_, now| now["spec"]["matchingPrecedence"] == 1).await;
    cluster.api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_address_of_a_service_is_an_object() {
    let cluster = cluster().await;
    let admin = cluster.admin();
    let addresses = "/apis/networking.k8s.io/v1/ipaddresses";
    let services = "/api/v1/namespaces/default/services";
    let own = until(&cluster, &format!("{addresses}/10.96.0.1"), &[], |code, _| code == 200).await;
    let parent = json!({"resource": "services", "namespace": "default", "name": "kubernetes"});
    assert_eq!(own["spec"]["parentRef"], parent);
    let labels = json!({"ipaddress.kubernetes.io/ip-family": "IPv4", "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io"});
    assert_eq!(own["metadata"]["labels"], labels);
    let service = |name: &str, ip: Value| {
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
            "spec": {"ports": [{"port": 80}], "clusterIP": ip}})
    };
    let made = cluster.create(services, service("web", Value::Null)).await;
    let path = format!("{addresses}/{}", made["spec"]["clusterIP"].as_str().unwrap());
    until(&cluster, &path, &[], |code, now| code == 200 && now["spec"]["parentRef"]["name"] == "web").await;
    cluster.create(services, service("headless", "None".into())).await;
    // What somebody deletes comes back; what is somebody's stays.
    let foreign = json!({"apiVersion": "networking.k8s.io/v1", "kind": "IPAddress", "metadata": {"name": "192.0.2.1"},
        "spec": {"parentRef": {"group": "", "resource": "services", "namespace": "default", "name": "mine"}}});
    cluster.create(addresses, foreign).await;
    comes_back(&cluster, &path).await;
    // Whoever has the address next is named.
    cluster.send(&admin, "DELETE", &format!("{services}/web"), Value::Null).await.expect(200);
    let again = service("again", made["spec"]["clusterIP"].clone());
    let retried = async {
        // The address is free once its marker is gone.
        while cluster.send(&admin, "POST", services, again.clone()).await.code != 201 {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(10), retried).await.unwrap();
    until(&cluster, &path, &[], |code, now| code == 200 && now["spec"]["parentRef"]["name"] == "again").await;
    cluster.send(&admin, "DELETE", &format!("{services}/again"), Value::Null).await.expect(200);
    until(&cluster, &path, &[], |code, _| code == 404).await;
    let list = cluster.get(&admin, addresses).await.expect(200);
    let names: Vec<&str> = list["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item["metadata"]["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["10.96.0.1", "192.0.2.1"]);
    cluster.api.stop().await;
}
