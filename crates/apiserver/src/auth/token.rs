//! Service account tokens: JSON Web Tokens signed with ECDSA P-256 (ES256). This module makes and
//! reads them; whether the objects they are bound to still exist is authentication's business.
//! Upstream counterpart: `pkg/serviceaccount/{claims,jwt}.go`.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, UnparsedPublicKey,
};
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};

/// What precedes the 65 bytes of an uncompressed P-256 point in a SubjectPublicKeyInfo.
const SPKI_HEAD: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// Clocks may differ by this much.
pub const LEEWAY_S: i64 = 60;

#[derive(Debug, thiserror::Error)]
#[error("service account key: {0}")]
pub struct KeyError(String);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reference {
    pub name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Private {
    pub namespace: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Reference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Reference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<Reference>,
    pub serviceaccount: Reference,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warnafter: Option<i64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    #[serde(deserialize_with = "one_or_many")]
    pub aud: Vec<String>,
    pub exp: i64,
    pub iat: i64,
    pub iss: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub jti: String,
    #[serde(rename = "kubernetes.io")]
    pub kubernetes: Private,
    pub nbf: i64,
    pub sub: String,
}

fn one_or_many<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        One(String),
        Many(Vec<String>),
    }
    Ok(match Either::deserialize(deserializer)? {
        Either::One(one) => vec![one],
        Either::Many(many) => many,
    })
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: Option<String>,
}

/// The key that signs tokens.
pub struct Signer {
    key: EcdsaKeyPair,
    public: UnparsedPublicKey<Vec<u8>>,
    random: SystemRandom,
    key_id: String,
    header: String,
}

impl Signer {
    /// From PKCS #8 PEM.
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        let der =
            PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes()).map_err(|e| KeyError(format!("{e:?}")))?;
        let random = SystemRandom::new();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der.secret_pkcs8_der(), &random)
            .map_err(|e| KeyError(e.to_string()))?;
        let point = key.public_key().as_ref().to_vec();
        let spki = [&SPKI_HEAD[..], &point].concat();
        let key_id = URL_SAFE_NO_PAD.encode(ring::digest::digest(&ring::digest::SHA256, &spki));
        let header = URL_SAFE_NO_PAD.encode(format!("{{\"alg\":\"ES256\",\"kid\":\"{key_id}\"}}"));
        Ok(Signer {
            key,
            public: UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point),
            random,
            key_id,
            header,
        })
    }

    pub fn sign(&self, claims: &Claims) -> Result<String, KeyError> {
        let claims = serde_json::to_vec(claims).map_err(|e| KeyError(e.to_string()))?;
        let signed = format!("{}.{}", self.header, URL_SAFE_NO_PAD.encode(claims));
        let signature = self
            .key
            .sign(&self.random, signed.as_bytes())
            .map_err(|_| KeyError("no signature".to_owned()))?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    /// The claims of a token with a good signature; says nothing of time, audience or objects.
    pub fn verify(&self, token: &str) -> Option<Claims> {
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        let header: Header = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header).ok()?).ok()?;
        if header.alg != "ES256" || header.kid.is_some_and(|kid| kid != self.key_id) {
            return None;
        }
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        self.public.verify(signed.as_bytes(), &signature).ok()?;
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).ok()?).ok()
    }

    /// The public key as a JSON Web Key, for `/openid/v1/jwks`.
    pub fn jwk(&self) -> serde_json::Value {
        let point = self.key.public_key().as_ref();
        let (x, y) = (URL_SAFE_NO_PAD.encode(&point[1..33]), URL_SAFE_NO_PAD.encode(&point[33..65]));
        serde_json::json!({"use": "sig", "kty": "EC", "kid": self.key_id, "crv": "P-256", "alg": "ES256", "x": x, "y": y})
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub fn signer() -> Signer {
        Signer::from_pem(&rcgen::KeyPair::generate().unwrap().serialize_pem()).unwrap()
    }

    pub fn claims() -> Claims {
        Claims {
            aud: vec!["a".into()],
            exp: 2_000,
            iat: 1_000,
            iss: "i".into(),
            jti: "j".into(),
            kubernetes: Private {
                namespace: "default".into(),
                node: None,
                pod: None,
                secret: None,
                serviceaccount: Reference { name: "default".into(), uid: "u".into() },
                warnafter: None,
            },
            nbf: 1_000,
            sub: "system:serviceaccount:default:default".into(),
        }
    }

    #[test]
    fn only_untouched_tokens_of_this_key_are_read() {
        let (signer, claims) = (signer(), claims());
        let token = signer.sign(&claims).unwrap();
        assert_eq!(signer.verify(&token), Some(claims.clone()));
        assert_eq!(self::signer().verify(&token), None);
        let mut forged = claims;
        forged.sub = "system:serviceaccount:kube-system:x".into();
        let body = URL_SAFE_NO_PAD.encode(serde_json::to_vec(&forged).unwrap());
        let parts: Vec<&str> = token.split('.').collect();
        assert_eq!(signer.verify(&format!("{}.{body}.{}", parts[0], parts[2])), None);
        let none = URL_SAFE_NO_PAD.encode("{\"alg\":\"none\"}");
        assert_eq!(signer.verify(&format!("{none}.{}.", parts[1])), None);
        assert_eq!(signer.verify(&format!("{none}.{}.{}", parts[1], parts[2])), None);
        for odd in ["", ".", "..", "a.b.c", &token[1..]] {
            assert_eq!(signer.verify(odd), None, "{odd}");
        }
    }
}
