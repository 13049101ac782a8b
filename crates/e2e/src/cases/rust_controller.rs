//! A custom resource and its controller as the `kube` crate makes them: definition by derive,
//! server-side apply of what is owned, status, scale, a finalizer.

use super::rust::{object, refused, with_client};
use crate::{Case, Scope};
use anyhow::{Context, Result, ensure};
use futures_util::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::controller::{Action, Controller};
use kube::runtime::finalizer::{self, finalizer};
use kube::runtime::wait::{await_condition, conditions};
use kube::runtime::watcher;
use kube::{Api, Client, CustomResource, CustomResourceExt, KubeSchema, Resource, ResourceExt};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

pub const CASES: &[Case] = &[Case { name: "a_rust_controller", run: controller }];

const DEFINITION: &str = "greetings.rust.example.com";
const MANAGER: &str = "greeter";
const FINALIZER: &str = "rust.example.com/farewell";

/// Whom to greet, and how often.
#[derive(CustomResource, KubeSchema, Clone, Debug, Deserialize, Serialize)]
#[kube(
    group = "rust.example.com",
    version = "v1",
    kind = "Greeting",
    namespaced,
    status = "GreetingStatus",
    shortname = "greet",
    selectable = ".spec.name",
    printcolumn(name = "Whom", type_ = "string", json_path = ".spec.name"),
    scale(spec_replicas_path = ".spec.times", status_replicas_path = ".status.times"),
    validation = Rule::new("self.metadata.name != 'nobody'").message("nobody is not greeted")
)]
#[x_kube(validation = Rule::new("self.times < 9 || self.name == 'crowd'").message("too often").field_path(".times"))]
struct GreetingSpec {
    #[x_kube(validation = Rule::new("self == oldSelf").message("a greeting keeps its name"))]
    #[schemars(length(min = 1))]
    name: String,
    #[serde(default = "once")]
    times: i32,
}

fn once() -> i32 {
    1
}

#[derive(Clone, Debug, Default, Deserialize, JsonSchema, Serialize)]
struct GreetingStatus {
    text: Option<String>,
    times: i32,
}

/// Applies the ConfigMap that belongs to a greeting and tells of it; says farewell to one that goes.
async fn reconcile(
    greeting: Arc<Greeting>,
    client: Arc<Client>,
) -> Result<Action, finalizer::Error<kube::Error>> {
    let greetings: Api<Greeting> = Api::default_namespaced(Client::clone(&client));
    let maps: Api<ConfigMap> = Api::default_namespaced(Client::clone(&client));
    finalizer(&greetings, FINALIZER, greeting, |event| async {
        let apply = PatchParams::apply(MANAGER).force();
        let map = |name: &str, owners: serde_json::Value, text: &str| {
            let metadata = json!({"name": name, "ownerReferences": owners});
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"text": text}})
        };
        match event {
            finalizer::Event::Apply(greeting) => {
                let (name, times) = (greeting.name_any(), greeting.spec.times);
                let text = format!("hello, {}", greeting.spec.name);
                let owned = map(&name, json!([greeting.controller_owner_ref(&())]), &text);
                maps.patch(&name, &apply, &Patch::Apply(owned)).await?;
                let status = json!({
                    "apiVersion": Greeting::api_version(&()), "kind": Greeting::kind(&()),
                    "status": {"text": text, "times": times},
                });
                greetings.patch_status(&name, &apply, &Patch::Apply(status)).await?;
            }
            finalizer::Event::Cleanup(greeting) => {
                let text = format!("goodbye, {}", greeting.spec.name);
                maps.patch("farewell", &apply, &Patch::Apply(map("farewell", json!([]), &text))).await?;
            }
        }
        Ok(Action::await_change())
    })
    .await
}

/// What of the status a greeting waits for.
fn shows(text: &str, times: i32) -> impl Fn(Option<&Greeting>) -> bool {
    move |greeting| {
        let status = greeting.and_then(|greeting| greeting.status.as_ref());
        status.is_some_and(|status| status.text.as_deref() == Some(text) && status.times == times)
    }
}

fn controller(scope: &Scope<'_>) -> Result<()> {
    with_client(scope, |client| async {
        let crds: Api<CustomResourceDefinition> = Api::all(client.clone());
        crds.patch(DEFINITION, &PatchParams::apply(MANAGER), &Patch::Apply(Greeting::crd())).await?;
        await_condition(crds.clone(), DEFINITION, conditions::is_crd_established()).await?;

        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
        let controller = Controller::new(Api::default_namespaced(client.clone()), watcher::Config::default())
            .owns(maps, watcher::Config::default().streaming_lists())
            .graceful_shutdown_on(async move { drop(stopped.await) })
            .run(reconcile, |_, _, _| Action::requeue(Duration::from_secs(1)), Arc::new(client.clone()))
            .filter_map(async |result: Result<_, _>| result.err().map(|error| error.to_string()))
            .collect::<Vec<String>>();
        let controller = tokio::spawn(controller);
        let result = greet(client).await;
        let _ = stop.send(());
        let said = controller.await?;
        result.with_context(|| format!("the controller says {said:?}"))?;
        let uid = crds.get(DEFINITION).await?.uid().context("a UID")?;
        crds.delete(DEFINITION, &DeleteParams::default()).await?;
        await_condition(crds, DEFINITION, conditions::is_deleted(&uid)).await?;
        Ok(())
    })
}

async fn greet(client: Client) -> Result<()> {
    let greetings: Api<Greeting> = Api::default_namespaced(client.clone());
    let maps: Api<ConfigMap> = Api::default_namespaced(client);
    let post = PostParams::default();
    let greeting = |name: &str, whom: &str, times: i32| {
        Greeting::new(name, GreetingSpec { name: whom.to_owned(), times })
    };
    // The rules that were derived hold.
    for (wrong, field, message) in [
        (greeting("nobody", "x", 1), "<nil>", "nobody is not greeted"),
        (greeting("x", "x", 9), "spec.times", "too often"),
        (greeting("x", "", 1), "spec.name", "should be at least 1 chars long"),
    ] {
        let status = refused(greetings.create(&post, &wrong).await)?;
        let causes = status.details.map(|details| details.causes).unwrap_or_default();
        ensure!(
            status.code == 422
                && causes.iter().any(|cause| cause.field == field && cause.message.contains(message)),
            "{message}: {causes:?}"
        );
    }
    let unset: Greeting = object(json!({
        "apiVersion": "rust.example.com/v1", "kind": "Greeting", "metadata": {"name": "x"}, "spec": {"name": "world"},
    }))?;
    let made = greetings.create(&post, &unset).await?;
    await_condition(greetings.clone(), "x", shows("hello, world", 1)).await?;
    let renamed = Patch::Merge(json!({"spec": {"name": "you"}}));
    let status = refused(greetings.patch("x", &PatchParams::default(), &renamed).await)?;
    ensure!(status.code == 422 && status.message.contains("a greeting keeps its name"), "{status:?}");
    let chosen = greetings.list(&ListParams::default().fields("spec.name=world")).await?.items;
    ensure!(chosen.len() == 1 && chosen[0].finalizers() == [FINALIZER], "{chosen:?}");
    ensure!(greetings.list(&ListParams::default().fields("spec.name=you")).await?.items.is_empty());

    // What it owns comes back, and goes with it.
    let owned = maps.get("x").await?;
    let owner = &owned.owner_references()[0];
    ensure!(
        owner.kind == "Greeting"
            && Some(&owner.uid) == made.metadata.uid.as_ref()
            && owner.controller == Some(true)
    );
    maps.delete("x", &DeleteParams::default()).await?;
    let old = owned.uid();
    let again = |map: Option<&ConfigMap>| map.is_some_and(|map| map.uid() != old);
    let owned =
        await_condition(maps.clone(), "x", again).await?.and_then(|map| map.uid()).context("a UID")?;
    let scale = Patch::Merge(json!({"spec": {"replicas": 3}}));
    greetings.patch_scale("x", &PatchParams::default(), &scale).await?;
    await_condition(greetings.clone(), "x", shows("hello, world", 3)).await?;
    let scale = greetings.get_scale("x").await?;
    ensure!(scale.status.is_some_and(|status| status.replicas == 3));
    let held = greetings.delete("x", &DeleteParams::default()).await?.left();
    ensure!(
        held.is_some_and(|greeting| greeting.metadata.deletion_timestamp.is_some()),
        "the finalizer holds it"
    );
    let uid = made.uid().context("a UID")?;
    await_condition(greetings, "x", conditions::is_deleted(&uid)).await?;
    let farewell = maps.get("farewell").await?.data.unwrap_or_default();
    ensure!(farewell.get("text").is_some_and(|text| text == "goodbye, world"), "{farewell:?}");
    await_condition(maps, "x", conditions::is_deleted(&owned)).await?;
    Ok(())
}
