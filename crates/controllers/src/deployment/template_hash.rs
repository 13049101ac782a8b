//! The label and name suffix that tell the ReplicaSets of a Deployment apart. Pure.
//! Upstream counterpart: `ComputeHash` and `rand.SafeEncodeString`. The value differs from
//! upstream's, which hashes a Go-specific rendering; form and alphabet are the same.

use k8s_openapi::api::core::v1::PodTemplateSpec;
use serde_json::Value;

pub(crate) const LABEL: &str = "pod-template-hash";

/// Without vowels and look-alikes, so that no word appears by chance.
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// Depends on the content of the template and the number of collisions so far, and on nothing
/// else: the same for every version of Skeg.
pub(crate) fn template_hash(template: &PodTemplateSpec, collision_count: Option<i32>) -> String {
    let mut hash = Fnv32(0x811c_9dc5);
    // A template of plain data always serializes; the fallback only keeps this total.
    hash.value(&serde_json::to_value(template).unwrap_or_default());
    if let Some(count) = collision_count {
        hash.bytes(&count.to_le_bytes());
        hash.bytes(&[0; 4]);
    }
    let encode = |digit: u8| ALPHABET[usize::from(digit) % ALPHABET.len()] as char;
    hash.0.to_string().bytes().map(encode).collect()
}

/// FNV-1a, 32 bits.
struct Fnv32(u32);

impl Fnv32 {
    fn bytes(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
        }
    }

    /// Feeds a value with sorted keys and a tag before each part, so that no two values of
    /// different structure feed the same bytes.
    fn value(&mut self, value: &Value) {
        match value {
            Value::Array(items) => {
                self.bytes(b"[");
                items.iter().for_each(|item| self.value(item));
                self.bytes(b"]");
            }
            Value::Object(fields) => {
                let mut fields: Vec<_> = fields.iter().collect();
                fields.sort_by_key(|(key, _)| *key);
                self.bytes(b"{");
                for (key, value) in fields {
                    self.bytes(key.as_bytes());
                    self.bytes(b":");
                    self.value(value);
                }
                self.bytes(b"}");
            }
            scalar => {
                self.bytes(scalar.to_string().as_bytes());
                self.bytes(b",");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn template(image: &str) -> PodTemplateSpec {
        let spec = json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": image}]}});
        serde_json::from_value(spec).unwrap()
    }

    #[test]
    fn is_fixed_for_all_time() {
        // Another value here would replace every Pod of every Deployment at an upgrade.
        assert_eq!(template_hash(&template("nginx"), None), EXPECTED);
        assert_ne!(template_hash(&template("nginx"), Some(1)), EXPECTED);
        assert_ne!(template_hash(&template("nginx:2"), None), EXPECTED);
        assert!(template_hash(&template("x"), None).bytes().all(|b| ALPHABET.contains(&b)));
    }

    const EXPECTED: &str = "8f9b9f6c8";
}
