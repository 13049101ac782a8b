//! `/metrics` in Prometheus' text format, by upstream's names. Counts nothing itself: it renders
//! what the server and the process know.

use crate::hooks::{Call, Endpoint};
use crate::local::{Body, full};
use crate::request::RequestInfo;
use crate::server::ApiServer;
use crate::stats::{DURATION_BOUNDS_US, RequestLabels, RequestSeries};
use futures_util::future::BoxFuture;
use http::{HeaderValue, Request, Response, header};
use skeg_api::Status;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

pub struct Metrics;

impl Endpoint for Metrics {
    fn handles(&self, info: &RequestInfo) -> bool {
        !info.is_resource() && info.path == "/metrics"
    }

    fn call(&self, call: Call, _request: Request<Body>) -> BoxFuture<'_, Result<Response<Body>, Status>> {
        let answer = if matches!(call.info.verb, "get" | "head") {
            let mut response = Response::new(full(render(&call.server)));
            let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
            response.headers_mut().insert(header::CONTENT_TYPE, kind);
            Ok(response)
        } else {
            Err(Status::unserved())
        };
        Box::pin(std::future::ready(answer))
    }
}

fn render(server: &ApiServer) -> String {
    let mut out = String::with_capacity(16 << 10);
    let stats = server.stats();
    requests(&mut out, &stats.requests());
    let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let _ = writeln!(out, "# TYPE apiserver_current_inflight_requests gauge");
    for (kind, gauge) in [("mutating", &stats.inflight_write), ("readOnly", &stats.inflight_read)] {
        let _ =
            writeln!(out, "apiserver_current_inflight_requests{{request_kind=\"{kind}\"}} {}", load(gauge));
    }
    let rows = [
        ("apiserver_watch_events_total", "counter", load(&stats.watch_events_total)),
        ("apiserver_terminated_watchers_total", "counter", load(&stats.watches_dropped_total)),
        ("apiserver_registered_watchers", "gauge", load(&stats.watchers)),
        ("apiserver_rejected_requests_total", "counter", load(&stats.rejected_total)),
        ("apiserver_request_panics_total", "counter", load(&stats.panics_total)),
        ("apiserver_storage_size_bytes", "gauge", server.seams().store.size_bytes()),
        ("skeg_store_revision", "gauge", server.seams().store.revision().0),
        ("skeg_encodes_total", "counter", load(&stats.encodes_total)),
        ("skeg_translations_total", "counter", load(&stats.translations_total)),
        ("skeg_requests_total", "counter", load(&stats.requests_total)),
    ];
    for (name, kind, value) in rows {
        let _ = writeln!(out, "# TYPE {name} {kind}\n{name} {value}");
    }
    process(&mut out);
    out
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn labels(of: &RequestLabels) -> String {
    let RequestLabels { verb, group, version, resource, subresource, scope, .. } = of;
    let (group, version) = (escape(group), escape(version));
    let (resource, subresource) = (escape(resource), escape(subresource));
    format!(
        "component=\"apiserver\",dry_run=\"\",group=\"{group}\",resource=\"{resource}\",scope=\"{scope}\",\
         subresource=\"{subresource}\",verb=\"{verb}\",version=\"{version}\""
    )
}

fn requests(out: &mut String, all: &[(RequestLabels, RequestSeries)]) {
    let _ = writeln!(out, "# TYPE apiserver_request_total counter");
    let mut durations: BTreeMap<String, RequestSeries> = BTreeMap::new();
    for (of, series) in all {
        let labels = labels(of);
        let _ = writeln!(out, "apiserver_request_total{{code=\"{}\",{labels}}} {}", of.code, series.count);
        if of.verb == "WATCH" {
            continue;
        }
        let sum = durations.entry(labels).or_default();
        sum.count += series.count;
        sum.total_us = sum.total_us.saturating_add(series.total_us);
        sum.buckets.iter_mut().zip(series.buckets).for_each(|(sum, n)| *sum += n);
    }
    let _ = writeln!(out, "# TYPE apiserver_request_duration_seconds histogram");
    for (labels, series) in durations {
        let mut total = 0;
        for (bound, n) in DURATION_BOUNDS_US.iter().zip(series.buckets) {
            total += n;
            let le = *bound as f64 / 1e6;
            let _ =
                writeln!(out, "apiserver_request_duration_seconds_bucket{{{labels},le=\"{le}\"}} {total}");
        }
        let (count, sum) = (series.count, series.total_us as f64 / 1e6);
        let _ = writeln!(out, "apiserver_request_duration_seconds_bucket{{{labels},le=\"+Inf\"}} {count}");
        let _ = writeln!(out, "apiserver_request_duration_seconds_sum{{{labels}}} {sum}");
        let _ = writeln!(out, "apiserver_request_duration_seconds_count{{{labels}}} {count}");
    }
}

/// What the kernel says of this process. Lines that cannot be had are left out.
fn process(out: &mut String) {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The command name, in parentheses, may have spaces; what follows has none.
    let fields: Vec<&str> =
        stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().collect()).unwrap_or_default();
    let field = |number: usize| fields.get(number - 3).and_then(|text| text.parse::<u64>().ok());
    let mut add = |name: &str, kind: &str, value: Option<f64>| {
        if let Some(value) = value {
            let _ = writeln!(out, "# TYPE {name} {kind}\n{name} {value}");
        }
    };
    // SAFETY: sysconf reads constants and touches no memory of ours.
    let (tick, page) = unsafe { (libc::sysconf(libc::_SC_CLK_TCK), libc::sysconf(libc::_SC_PAGESIZE)) };
    let (tick, page) = (tick.max(1) as f64, page.max(1) as f64);
    let cpu = field(14).zip(field(15)).map(|(user, system)| (user + system) as f64 / tick);
    add("process_cpu_seconds_total", "counter", cpu);
    add("process_virtual_memory_bytes", "gauge", field(23).map(|bytes| bytes as f64));
    add("process_resident_memory_bytes", "gauge", field(24).map(|pages| pages as f64 * page));
    let boot = std::fs::read_to_string("/proc/stat").ok().and_then(|text| {
        text.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse::<u64>().ok())
    });
    let started = field(22).zip(boot).map(|(ticks, boot)| boot as f64 + ticks as f64 / tick);
    add("process_start_time_seconds", "gauge", started);
    let open = std::fs::read_dir("/proc/self/fd").map(|dir| dir.count() as f64).ok();
    add("process_open_fds", "gauge", open);
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let most = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files")?.split_whitespace().next()?.parse().ok());
    add("process_max_fds", "gauge", most);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_render_as_counters_and_histograms() {
        let labels = |code| RequestLabels {
            verb: "GET",
            group: "apps".into(),
            version: "v1".into(),
            resource: "deployments".into(),
            subresource: String::new(),
            scope: "resource",
            code,
        };
        let mut series = RequestSeries { count: 2, total_us: 3_000, ..Default::default() };
        series.buckets[0] = 1;
        series.buckets[1] = 1;
        let mut out = String::new();
        requests(&mut out, &[(labels(200), series.clone()), (labels(404), series)]);
        assert!(out.contains("apiserver_request_total{code=\"404\",component=\"apiserver\""), "{out}");
        assert!(out.contains("le=\"0.001\"} 2\n"), "{out}");
        assert!(out.contains("le=\"+Inf\"} 4\n"), "{out}");
    }

    #[test]
    fn the_process_knows_itself() {
        let mut out = String::new();
        process(&mut out);
        for name in [
            "process_cpu_seconds_total",
            "process_resident_memory_bytes",
            "process_start_time_seconds",
            "process_open_fds",
        ] {
            assert!(out.contains(&format!("\n{name} ")), "{name}: {out}");
        }
    }
}
