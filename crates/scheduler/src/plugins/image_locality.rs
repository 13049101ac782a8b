//! ImageLocality: better where the images already are, in proportion to their size and to how
//! many Nodes have them (so that one Node does not attract everything).

use crate::framework::{MAX_NODE_SCORE, PreScore};
use crate::pod_info::Candidate;
use crate::snapshot::{NodeInfo, Snapshot};

const MIB: i64 = 1 << 20;
/// Images below this do not count; per container, more than this does not count more.
const THRESHOLD_MIN_BYTES: i64 = 23 * MIB;
const THRESHOLD_MAX_BYTES: i64 = 1000 * MIB;

pub fn score<'a>(pod: &'a Candidate, snapshot: &'a Snapshot, _: &[&'a NodeInfo]) -> PreScore<'a> {
    let spec = pod.pod.spec.as_ref();
    let init = spec.iter().flat_map(|s| s.init_containers.iter().flatten());
    let containers = spec.iter().flat_map(|s| s.containers.iter()).chain(init);
    let images: Vec<String> =
        containers.map(|c| normalized(c.image.as_deref().unwrap_or_default())).collect();
    let spread: Vec<(String, f64)> = images
        .iter()
        .map(|image| {
            let share = f64::from(snapshot.nodes_with_image(image)) / snapshot.nodes().len().max(1) as f64;
            (image.clone(), share)
        })
        .filter(|(_, share)| *share > 0.0)
        .collect();
    // Every Node would get the same score.
    if spread.is_empty() {
        return PreScore::Skip;
    }
    let max = THRESHOLD_MAX_BYTES * images.len() as i64;
    let score = move |node: &NodeInfo| {
        let present = spread.iter().filter_map(|(image, share)| Some((node.facts.images.get(image)?, share)));
        let sum: i64 = present.map(|(size, share)| (*size as f64 * share) as i64).sum();
        MAX_NODE_SCORE * (sum.clamp(THRESHOLD_MIN_BYTES, max) - THRESHOLD_MIN_BYTES)
            / (max - THRESHOLD_MIN_BYTES)
    };
    PreScore::Score(Box::new(score), None)
}

/// An image without a tag means `latest`.
fn normalized(image: &str) -> String {
    let tagged = image.rsplit('/').next().is_some_and(|last| last.contains([':', '@']));
    if tagged { image.to_owned() } else { format!("{image}:latest") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::Cache;
    use serde_json::json;
    use std::sync::Arc;

    #[test]
    fn scores_go_from_small_images_to_large_ones() {
        let pod = json!({"metadata": {}, "spec": {"containers": [{"name": "a", "image": "a"}, {"name": "b", "image": "b:1"}]}});
        let pod = Candidate::new(Arc::new(serde_json::from_value(pod).unwrap()));
        for (images, expected) in [
            (json!([]), 0),
            (json!([{"names": ["a:latest"], "sizeBytes": 23 * MIB}]), 0),
            (json!([{"names": ["a:latest"], "sizeBytes": 45 * MIB}]), 1),
            (json!([{"names": ["a:latest"], "sizeBytes": 1000 * MIB}]), 49),
            (
                json!([{"names": ["a:latest"], "sizeBytes": 600 * MIB}, {"names": ["x", "b:1"], "sizeBytes": 411 * MIB}]),
                49,
            ),
            // Two containers: twice as much counts, and no more.
            (json!([{"names": ["a:latest"], "sizeBytes": 2000 * MIB}]), 100),
            (json!([{"names": ["a:latest"], "sizeBytes": 9000 * MIB}]), 100),
        ] {
            let node = json!({"metadata": {"name": "n"}, "status": {"images": images}});
            let mut cache = Cache::default();
            cache.set_node(&serde_json::from_value(node).unwrap());
            let snapshot = cache.snapshot();
            let given = match score(&pod, snapshot, &[]) {
                PreScore::Score(score, _) => score(&snapshot.nodes()[0]),
                _ => 0,
            };
            assert_eq!(given, expected, "{images}");
        }
    }
}
