//! Heartbeats and elections against one lease in memory.

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use skeg_base::Clock;
use skeg_client::{Body, BoxError, Client, Elector, LeaseKeeper};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The only lease there is, and whether its server is up.
#[derive(Clone, Default)]
struct Store(Arc<Mutex<(Value, u64, bool)>>);

impl Store {
    fn answer(&self, method: &str, mut body: Value) -> Result<(u16, Value), BoxError> {
        let mut store = self.0.lock().unwrap();
        let (lease, revision, down) = &mut *store;
        if *down {
            return Err("down".into());
        }
        let refuse = |code: u16, reason: &str| {
            Ok((code, json!({"status": "Failure", "code": code, "reason": reason})))
        };
        match method {
            "GET" if lease.is_null() => return refuse(404, "NotFound"),
            "GET" => return Ok((200, lease.clone())),
            "POST" if !lease.is_null() => return refuse(409, "AlreadyExists"),
            "PUT" if body["metadata"]["resourceVersion"] != lease["metadata"]["resourceVersion"] => {
                return refuse(409, "Conflict");
            }
            _ => {}
        }
        *revision += 1;
        body["metadata"]["resourceVersion"] = revision.to_string().into();
        *lease = body.clone();
        Ok((200, body))
    }

    fn client(&self) -> Client {
        let store = self.clone();
        Client::new(tower::service_fn(move |request: Request<Body>| {
            let store = store.clone();
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await?.to_bytes();
                let (code, answer) =
                    store.answer(head.method.as_str(), serde_json::from_slice(&body).unwrap_or_default())?;
                let body = Full::new(Bytes::from(answer.to_string())).map_err(|never| match never {});
                Ok::<_, BoxError>(Response::builder().status(code).body(body.boxed_unsync())?)
            }
        }))
    }

    fn spec(&self, field: &str) -> Value {
        self.0.lock().unwrap().0["spec"][field].clone()
    }

    fn set_down(&self, down: bool) {
        self.0.lock().unwrap().2 = down;
    }
}

fn clock() -> Clock {
    Clock::simulated("2026-01-01T00:00:00Z".parse().unwrap())
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..1_000_000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("{what}");
}

#[tokio::test(start_paused = true)]
async fn a_heartbeat_is_renewed_and_survives_outages() {
    let store = Store::default();
    let keeper = LeaseKeeper {
        client: store.client(),
        namespace: "kube-node-lease".into(),
        name: "n1".into(),
        holder: "n1".into(),
        duration: Duration::from_secs(40),
        owner: None,
        clock: clock(),
    };
    let cancel = CancellationToken::new();
    let token = cancel.clone();
    let running = tokio::spawn(async move { keeper.run(&token).await });
    until("made", || store.spec("renewTime") == "2026-01-01T00:00:00.000000Z").await;
    assert_eq!(store.spec("leaseDurationSeconds"), 40);
    until("renewed", || store.spec("renewTime") != "2026-01-01T00:00:00.000000Z").await;
    assert_eq!(store.spec("renewTime").as_str().unwrap()[..19], *"2026-01-01T00:00:10");
    store.set_down(true);
    tokio::time::sleep(Duration::from_secs(60)).await;
    store.set_down(false);
    let stale = store.spec("renewTime");
    let begun = Instant::now();
    until("renewed again", || store.spec("renewTime") != stale).await;
    assert!(begun.elapsed() <= Duration::from_secs(7));
    // Somebody else writes it: the next renewal reads it again.
    store.0.lock().unwrap().0["metadata"]["resourceVersion"] = "999".into();
    let stale = store.spec("renewTime");
    let begun = Instant::now();
    until("renewed after a conflict", || store.spec("renewTime") != stale).await;
    assert!(begun.elapsed() <= Duration::from_secs(11));
    cancel.cancel();
    running.await.unwrap();
}

/// A candidate that writes down when it leads.
fn run_for_leader(store: &Store, name: &'static str, log: &Log, cancel: &CancellationToken) {
    let elector = Elector::new(store.client(), "kube-system", "leader", name, clock());
    let (log, cancel) = (log.clone(), cancel.clone());
    tokio::spawn(async move {
        let lost = elector
            .run(&cancel, |leading| {
                let log = log.clone();
                async move {
                    log.lock().unwrap().push(format!("{name} leads"));
                    leading.cancelled().await;
                    log.lock().unwrap().push(format!("{name} stops"));
                }
            })
            .await;
        if lost {
            log.lock().unwrap().push(format!("{name} lost it"));
        }
    });
}

type Log = Arc<Mutex<Vec<String>>>;

#[tokio::test(start_paused = true)]
async fn one_leads_and_hands_over_at_once() {
    let (store, log) = (Store::default(), Log::default());
    let (first, second) = (CancellationToken::new(), CancellationToken::new());
    run_for_leader(&store, "a", &log, &first);
    until("a leads", || log.lock().unwrap().len() == 1).await;
    run_for_leader(&store, "b", &log, &second);
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(*log.lock().unwrap(), ["a leads"]);
    let begun = Instant::now();
    first.cancel();
    until("b leads", || log.lock().unwrap().len() == 3).await;
    assert_eq!(*log.lock().unwrap(), ["a leads", "a stops", "b leads"]);
    assert!(begun.elapsed() <= Duration::from_secs(3), "{:?}", begun.elapsed());
    assert_eq!(store.spec("leaseTransitions"), 1);
    second.cancel();
}

#[tokio::test(start_paused = true)]
async fn a_leader_without_answers_stops_before_another_may_lead() {
    let (store, log) = (Store::default(), Log::default());
    let cancel = CancellationToken::new();
    run_for_leader(&store, "a", &log, &cancel);
    until("a leads", || log.lock().unwrap().len() == 1).await;
    store.set_down(true);
    let begun = Instant::now();
    until("a lost it", || log.lock().unwrap().len() == 3).await;
    assert_eq!(*log.lock().unwrap(), ["a leads", "a stops", "a lost it"]);
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    store.set_down(false);
    run_for_leader(&store, "b", &log, &cancel);
    until("b leads", || log.lock().unwrap().len() == 4).await;
    assert!(begun.elapsed() > Duration::from_secs(15), "the dead leader's lease is respected");
    cancel.cancel();
}
