//! Whole requests, to a server over the in-memory store.

use http::{Method, Request, StatusCode, header};
use http_body_util::BodyExt;
use serde_json::Value;
use skeg_api::{Kinds, builtin};
use skeg_apiserver::assembly::{self, Setup};
use skeg_apiserver::local::full;
use skeg_apiserver::{Identity, LocalService, bootstrap, route};
use skeg_base::{Clock, Random};
use skeg_store::Memory;
use std::cell::RefCell;
use std::sync::Arc;
use tokio::runtime::Runtime;

/// A method, a path with its query, and after a line break the body.
pub const SEEDS: &[&[u8]] = &[
    b"GET /api/v1/namespaces/default/pods?limit=5&labelSelector=a%3Db&fieldSelector=metadata.name=x&resourceVersion=0",
    b"GET /apis/apps/v1/deployments?watch=1&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan",
    b"GET /api/v1/namespaces/default/pods/a/log?follow=1&container=b",
    b"GET /apis/apiextensions.k8s.io/v1/customresourcedefinitions/a.b/status",
    b"GET /openapi/v3/apis/apps/v1?hash=0\n",
    b"GET /readyz/ping?verbose&exclude=store",
    b"POST /api/v1/namespaces/default/configmaps?dryRun=All&fieldManager=a&fieldValidation=Strict\n{\"metadata\":{\"generateName\":\"a-\"},\"data\":{\"a\":\"b\"}}",
    b"PUT /api/v1/namespaces/default/services/kubernetes/proxy/a/../b",
    b"PATCH /api/v1/namespaces/kube-system?force=true\n{\"metadata\":{\"labels\":{\"a\":\"b\"}}}",
    b"DELETE /api/v1/namespaces/default/secrets?propagationPolicy=Orphan&gracePeriodSeconds=-1\n{\"preconditions\":{\"uid\":\"a\"}}",
    b"POST /apis/authorization.k8s.io/v1/selfsubjectaccessreviews\n{\"spec\":{\"resourceAttributes\":{\"verb\":\"get\",\"resource\":\"pods\"}}}",
    b"POST /api/v1/namespaces/default/serviceaccounts/default/token\n{\"spec\":{\"expirationSeconds\":600}}",
    b"OPTIONS //api//v1/watch/namespaces/%2e%2e/pods/%00",
];

/// A server that has had so many is replaced, so that what it holds stays little.
const REQUESTS_MAX: usize = 4_096;

/// Every request has an answer, and a refusal is a Status or a text; what cannot be routed is
/// refused, never an error of the server's own.
pub fn url(data: &[u8]) {
    let end = data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len());
    let Ok(line) = std::str::from_utf8(&data[..end]) else { return };
    let (method, uri) = line.split_once(' ').unwrap_or(("GET", line));
    let (Ok(method), Ok(uri)) = (method.parse::<Method>(), uri.parse::<http::Uri>()) else { return };
    let routed = route::parse(&method, &uri);
    let kind = match method {
        Method::PATCH => "application/merge-patch+json",
        _ => "application/json",
    };
    let request = Request::builder().method(method.clone()).uri(uri).header(header::CONTENT_TYPE, kind);
    let Ok(request) = request.body(full(data.get(end + 1..).unwrap_or_default().to_vec())) else { return };
    thread_local! {
        static SERVER: RefCell<(usize, Option<(Runtime, LocalService)>)> = const { RefCell::new((0, None)) };
    }
    SERVER.with_borrow_mut(|(requests, server)| {
        *requests += 1;
        if *requests % REQUESTS_MAX == 0 {
            *server = None;
        }
        let (runtime, service) = server.get_or_insert_with(start);
        runtime.block_on(async {
            let response = service.send(request).await;
            let code = response.status();
            if routed.is_err() {
                assert!(code.is_client_error() || code.is_redirection(), "{code} for what has no route");
            }
            assert_ne!(code, StatusCode::SWITCHING_PROTOCOLS);
            if code.is_success() || method == Method::HEAD {
                return;
            }
            let is_json =
                response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/json");
            let body = response.into_body().collect().await.unwrap().to_bytes();
            if is_json {
                let status: Value = serde_json::from_slice(&body).unwrap();
                assert_eq!(status["code"], code.as_u16(), "{status}");
            }
        });
    });
}

fn start() -> (Runtime, LocalService) {
    // What waits for a revision that never comes waits in virtual time.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let setup = Setup {
        edge: None,
        cluster_domain: "cluster.local".into(),
        admission: Default::default(),
        bootstrap: bootstrap::Settings {
            service_range: "10.96.0.0/16".parse().unwrap(),
            service_ip: [10, 96, 0, 1].into(),
            endpoints: Vec::new(),
            port: 6443,
        },
    };
    let kinds = Arc::new(Kinds::new(builtin::builtin()));
    let opened = assembly::open(setup, kinds, Arc::new(Memory::new()), Clock::system(), Random::seeded(1));
    let server = runtime.block_on(opened).unwrap().server;
    let service = server.client_service(Identity::system("tester", &["system:masters"]));
    (runtime, service)
}
