//! `/containerLogs`: which run's log it is, and its text.

use super::{Answer, Query, plain};
use crate::agent::Agent;
use crate::logs::LogOptions;
use crate::machine::{self, ContainerMemory, Run};
use crate::worker::{Worker, wait_exit};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use skeg_base::Timestamp;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// Blocks read ahead of a slow reader.
const BLOCKS_AHEAD: usize = 4;

pub async fn serve(agent: &Arc<Agent>, ns: &str, pod: &str, container: &str, query: &Query) -> Answer {
    let bad = |why: String| plain(StatusCode::BAD_REQUEST, why);
    let options = match options(query, agent.ctx.clock.now()) {
        Ok(options) => options,
        Err(why) => return plain(StatusCode::UNPROCESSABLE_ENTITY, why),
    };
    let Some(worker) = agent.find(ns, pod) else {
        return plain(StatusCode::NOT_FOUND, format!("pod \"{pod}\" does not exist"));
    };
    let object = worker.pod();
    if machine::ephemeral::find_container(machine::spec(&object), container).is_none() {
        return plain(StatusCode::NOT_FOUND, format!("container \"{container}\" not found in pod \"{pod}\""));
    }
    let run = match choose(&worker, pod, container, options.previous) {
        Ok(run) => run,
        Err(why) => return bad(why),
    };
    let path = agent.ctx.log_path(&object, container, run.attempt);
    if !path.exists() {
        return bad(format!("unable to retrieve container logs for skeg://{}", run.id));
    }
    let (sender, receiver) = mpsc::channel(BLOCKS_AHEAD);
    let (ctx, uid, running) = (agent.ctx.clone(), worker.uid.clone(), run.is_running());
    tokio::spawn(async move {
        let ended = async move {
            if running {
                wait_exit(&ctx, &uid, &run.id).await;
            }
        };
        if let Err(error) = crate::logs::stream(path, options, sender.clone(), ended).await {
            let _ = sender.send(Err(error)).await;
        }
    });
    let parts = stream::unfold(receiver, |mut receiver: mpsc::Receiver<std::io::Result<Bytes>>| async move {
        receiver.recv().await.map(|part| (part, receiver))
    });
    let mut answer = Response::new(StreamBody::new(parts.map(|part| part.map(Frame::data))).boxed_unsync());
    answer.headers_mut().insert("content-type", http::HeaderValue::from_static("text/plain"));
    answer
}

fn options(query: &Query, now: Timestamp) -> Result<LogOptions, String> {
    let number = |key: &str| match query.get(key) {
        None => Ok(None),
        Some(text) => text.parse::<i64>().map(Some).map_err(|_| format!("invalid {key}: {text:?}")),
    };
    let since = match (number("sinceSeconds")?, query.get("sinceTime")) {
        (Some(_), Some(_)) => {
            return Err("at most one of `sinceTime` or `sinceSeconds` may be specified".into());
        }
        (Some(seconds), None) => now.checked_sub(Duration::from_secs(seconds.max(0) as u64)).ok(),
        (None, Some(text)) => Some(text.parse().map_err(|_| format!("invalid sinceTime: {text:?}"))?),
        (None, None) => None,
    };
    Ok(LogOptions {
        follow: query.flag("follow"),
        previous: query.flag("previous"),
        timestamps: query.flag("timestamps"),
        tail_lines: number("tailLines")?.and_then(|n| usize::try_from(n).ok()),
        since,
        limit_bytes: number("limitBytes")?.and_then(|n| u64::try_from(n).ok()),
        stream: query.get("stream").filter(|s| *s != "All").map(str::to_ascii_lowercase),
    })
}

/// The run whose log is meant: the last one that began, or the one before the present state.
fn choose(worker: &Worker, pod: &str, container: &str, previous: bool) -> Result<Run, String> {
    let (memory, object) = (worker.memory(), worker.pod());
    let none = ContainerMemory::default();
    let known = memory.container(container).unwrap_or(&none);
    if previous {
        let spec = machine::spec(&object);
        // Between two runs the last one is the previous one.
        let between = known.current.as_ref().filter(|run| {
            run.is_exited()
                && !machine::is_finished(&object, &memory)
                && machine::all_containers(spec)
                    .any(|c| c.name == container && machine::restarts(spec, c, false, run.exit_code))
        });
        let chosen = between.or(known.previous.as_ref()).cloned();
        return chosen.ok_or_else(|| {
            format!("previous terminated container \"{container}\" in pod \"{pod}\" not found")
        });
    }
    if let Some(run) = known.current.as_ref().filter(|run| run.state != skeg_runtime::ContainerState::Created)
    {
        return Ok(run.clone());
    }
    let start = format!("container \"{container}\" in pod \"{pod}\" is waiting to start:");
    Err(match known.waiting.as_ref().map(|w| w.reason.as_str()) {
        Some("ErrImagePull") => format!("{start} image can't be pulled"),
        Some("ImagePullBackOff") => format!("{start} trying and failing to pull image"),
        Some(reason) => format!("{start} {reason}"),
        None if machine::init_containers(machine::spec(&object)).is_empty() => {
            format!("{start} ContainerCreating")
        }
        None => format!("{start} PodInitializing"),
    })
}
