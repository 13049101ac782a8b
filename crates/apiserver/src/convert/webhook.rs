//! Conversion by the webhook of a definition. Whatever it does, it costs the requests about that
//! definition no more than its time, and other requests nothing.
//! Upstream counterpart: `apiextensions-apiserver/pkg/apiserver/conversion`.

use super::review::{objects, review, settle};
use crate::server::ApiServer;
use crate::webhook::Client;
use parking_lot::Mutex;
use serde_json::Value;
use skeg_api::crd::Conversion;
use skeg_api::{Kind, Reason, Status, decode, meta};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::Semaphore;

/// How long a webhook has to answer, as upstream has it.
const SECONDS: u64 = 30;
/// Requests that wait for conversions at once; the rest of those that are served is left to others.
const WAITING_MAX: usize = 100;
/// Definitions whose connections are kept.
const CLIENTS_MAX: usize = 1000;

type Known = (Arc<Conversion>, Arc<Result<Client, String>>);

/// The ways to the webhooks, and who waits for them.
pub struct Conversions {
    /// By definition.
    clients: Mutex<BTreeMap<String, Known>>,
    waiting: Semaphore,
}

impl Default for Conversions {
    fn default() -> Self {
        Conversions { clients: Mutex::default(), waiting: Semaphore::new(WAITING_MAX) }
    }
}

impl Conversions {
    fn client(&self, server: &ApiServer, conversion: &Arc<Conversion>) -> Arc<Result<Client, String>> {
        let mut clients = self.clients.lock();
        if let Some((known, client)) = clients.get(&conversion.definition)
            && (Arc::ptr_eq(known, conversion) || known == conversion)
        {
            return client.clone();
        }
        if clients.len() >= CLIENTS_MAX {
            clients.clear();
        }
        let client = Arc::new(Client::new(&conversion.client, server.hooks().dialer.clone()));
        clients.insert(conversion.definition.clone(), (conversion.clone(), client.clone()));
        client
    }
}

/// Brings objects into the version of `to`, with one review for all that are of another.
pub async fn convert(
    server: &Arc<ApiServer>,
    conversion: &Arc<Conversion>,
    to: &Kind,
    all: &mut [Value],
) -> Result<(), Status> {
    let desired = to.gvk.api_version();
    let places: Vec<usize> = (0..all.len()).filter(|at| meta::api_version(&all[*at]) != desired).collect();
    let Some(first) = places.first() else { return Ok(()) };
    let name = format!("conversion webhook for {}, Kind={}", meta::api_version(&all[*first]), to.gvk.kind);
    let failed = |why: String| Status::new(500, Reason::Empty, format!("{name} {why}"));
    let sent: Vec<&Value> = places.iter().map(|at| &all[*at]).collect();
    let converted = ask(server, conversion, &desired, &sent).await?;
    let converted = converted.map_err(|why| failed(format!("failed: {why}")))?;
    if converted.len() != sent.len() {
        return Err(failed(format!("returned {} objects, expected {}", converted.len(), sent.len())));
    }
    let is_list = all.len() > 1;
    for (index, (at, mut object)) in places.into_iter().zip(converted).enumerate() {
        settle(&all[at], &mut object, &desired).map_err(|wrong| {
            failed(match (is_list, wrong.what) {
                (true, "object") => {
                    format!("returned invalid converted object at index {index}: {}", wrong.why)
                }
                (true, _) => format!("returned invalid metadata in object at index {index}: {}", wrong.why),
                (false, what) if wrong.why.starts_with("invalid ") && what == "object" => {
                    format!("returned invalid object at index 0: {}", wrong.why)
                }
                (false, what) => format!("returned invalid {what}: {}", wrong.why),
            })
        })?;
        // Of what is stored nothing is refused: that is validation's.
        let _ = decode::check(&to.schema, &mut object);
        all[at] = object;
    }
    Ok(())
}

async fn ask(
    server: &Arc<ApiServer>,
    conversion: &Arc<Conversion>,
    desired: &str,
    sent: &[&Value],
) -> Result<Result<Vec<Value>, String>, Status> {
    let conversions = &server.conversions;
    let _place = conversions.waiting.try_acquire().map_err(|_| {
        let why = "too many requests wait for conversion webhooks, please try again later";
        Status::too_many_requests(why, 1)
    })?;
    let client = conversions.client(server, conversion);
    let client = match client.as_ref() {
        Ok(client) => client,
        Err(why) => return Ok(Err(why.clone())),
    };
    let uid = server.seams().random.uuid();
    let body = review(conversion, &uid, desired, sent);
    let answer = client.post(server, body, SECONDS).await;
    Ok(answer.and_then(|answer| objects(conversion, &uid, &answer)))
}
