//! ComponentStatus: the parts of a control plane, which all run in this process. Who gets an answer
//! has found them running; `/readyz` tells more.
//! Upstream counterpart: `pkg/registry/core/componentstatus`.

use super::{Answer, Context};
use crate::list::ListMeta;
use crate::local::Body;
use crate::negotiate;
use http::header::HeaderMap;
use http::{Response, StatusCode};
use serde_json::json;
use skeg_api::{Status, Value};

pub const PLURAL: &str = "componentstatuses";
const COMPONENTS: [&str; 3] = ["controller-manager", "etcd-0", "scheduler"];

pub async fn read(ctx: Context<'_>, headers: &HeaderMap) -> Result<Response<Body>, Status> {
    let output = ctx.output(headers)?;
    if ctx.info.verb == "list" {
        let list = ctx.renderer(output.form)?.values(&ListMeta::default(), COMPONENTS.map(status));
        return negotiate::respond_value(StatusCode::OK, output, &list);
    }
    let name = COMPONENTS.iter().find(|name| **name == ctx.info.name).ok_or_else(|| ctx.not_found())?;
    ctx.respond(output, Answer::Value { code: StatusCode::OK, value: status(name) }).await
}

fn status(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ComponentStatus", "metadata": {"name": name},
        "conditions": [{"type": "Healthy", "status": "True", "message": "ok"}]})
}
