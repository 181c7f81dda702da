//! Tokens: whether one is valid, who its user is, and when it expires. HMAC secrets and JSON Web Key Sets.

use jsonwebtoken::jwk::{Jwk, JwkSet};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};

use crate::config::plan::{AuthPlan, TokenFrom};
use crate::model::UserId;
use crate::model::view::RequestView;

/// A valid token.
#[derive(Debug, PartialEq, Eq)]
pub struct Identity {
    /// The token's subject.
    pub user: Option<UserId>,
    /// When it runs out, in seconds since the epoch.
    pub expires_s: Option<u64>,
}

/// Checks the token of a request. The error says why, for the log; the client only learns that it is not authorised.
pub fn check(plan: &AuthPlan, request: &RequestView) -> Result<Identity, String> {
    let token = plan.from.iter().find_map(|from| find(from, request)).ok_or("no token")?;
    verify(plan, token)
}

fn find<'a>(from: &TokenFrom, request: &'a RequestView) -> Option<&'a str> {
    let found = match from {
        TokenFrom::Query(name) => request.query.get(name),
        TokenFrom::Cookie(name) => request.cookie.get(name),
        TokenFrom::Header(name) => request.header.get(name).map(|value| value.strip_prefix("Bearer ").unwrap_or(value)),
    };
    found.filter(|token| !token.is_empty())
}

fn verify(plan: &AuthPlan, token: &str) -> Result<Identity, String> {
    let header = decode_header(token).map_err(|e| e.to_string())?;
    let hmac = matches!(header.alg, Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512);
    // The kind of key decides which algorithms may be used with it, never the token alone.
    let key = match (&plan.secret, &plan.keys) {
        (Some(secret), _) if hmac => DecodingKey::from_secret(secret.0.as_bytes()),
        (_, Some(keys)) if !hmac => {
            let set: JwkSet = serde_json::from_str(keys).map_err(|e| e.to_string())?;
            let jwk = choose(&set, header.kid.as_deref(), header.alg).ok_or("no key in the set matches the token")?;
            DecodingKey::from_jwk(jwk).map_err(|e| e.to_string())?
        }
        _ => return Err(format!("no key for the algorithm {:?}", header.alg)),
    };
    let mut rules = Validation::new(header.alg);
    rules.required_spec_claims.clear();
    rules.validate_nbf = true;
    rules.leeway = 0;
    rules.validate_aud = plan.audience.is_some();
    if let Some(audience) = &plan.audience {
        rules.set_audience(&[audience]);
        rules.required_spec_claims.insert("aud".into());
    }
    if let Some(issuer) = &plan.issuer {
        rules.set_issuer(&[issuer]);
        rules.required_spec_claims.insert("iss".into());
    }
    let claims = decode::<serde_json::Map<String, serde_json::Value>>(token, &key, &rules).map_err(|e| e.to_string())?.claims;
    let user = match claims.get("sub") {
        Some(serde_json::Value::String(text)) if !text.is_empty() => Some(text.as_str().into()),
        Some(serde_json::Value::Number(number)) => Some(number.to_string().into()),
        _ => None,
    };
    let expires_s = claims.get("exp").and_then(|exp| exp.as_u64().or_else(|| exp.as_f64().filter(|n| *n >= 0.0).map(|n| n as u64)));
    Ok(Identity { user, expires_s })
}

/// The key that a token names, or the only one that fits if it names none.
fn choose<'a>(set: &'a JwkSet, kid: Option<&str>, algorithm: Algorithm) -> Option<&'a Jwk> {
    let fits = |jwk: &&Jwk| jwk.common.key_algorithm.is_none_or(|of_key| of_key.to_string() == format!("{algorithm:?}"));
    match kid {
        Some(kid) => set.find(kid).filter(fits),
        None => {
            let mut fitting = set.keys.iter().filter(fits);
            fitting.next().filter(|_| fitting.next().is_none())
        }
    }
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::{EncodingKey, Header, encode};

    use super::*;
    use crate::config::plan::Secret;

    fn plan() -> AuthPlan {
        AuthPlan {
            secret: Some(Secret("s3cret".into())),
            keys: None,
            from: vec![TokenFrom::Query("token".into()), TokenFrom::Header("authorization".into())],
            audience: None,
            issuer: None,
        }
    }

    fn token(claims: serde_json::Value, secret: &str) -> String {
        encode(&Header::default(), &claims, &EncodingKey::from_secret(secret.as_bytes())).unwrap()
    }

    fn request(token: &str) -> RequestView {
        RequestView { query: [("token", token)].into_iter().collect(), ..RequestView::default() }
    }

    #[test]
    fn a_valid_token_speaks_for_its_subject() {
        let good = token(serde_json::json!({"sub": "u1", "exp": 9_999_999_999u64}), "s3cret");
        assert_eq!(check(&plan(), &request(&good)), Ok(Identity { user: Some("u1".into()), expires_s: Some(9_999_999_999) }));
        let header = RequestView { header: [("authorization", format!("Bearer {good}"))].into_iter().collect(), ..RequestView::default() };
        assert!(check(&plan(), &header).is_ok());
    }

    #[test]
    fn anything_else_is_refused() {
        let unsigned = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJ1MSJ9.";
        for bad in [
            token(serde_json::json!({"sub": "u1"}), "other"),
            token(serde_json::json!({"sub": "u1", "exp": 1}), "s3cret"),
            token(serde_json::json!({"sub": "u1", "nbf": 9_999_999_999u64}), "s3cret"),
            unsigned.into(),
            "garbage".into(),
            String::new(),
        ] {
            assert!(check(&plan(), &request(&bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn audience_and_issuer_count_where_they_are_set() {
        let strict = AuthPlan { audience: Some("me".into()), issuer: Some("them".into()), ..plan() };
        assert!(check(&strict, &request(&token(serde_json::json!({"sub": "u", "aud": "me", "iss": "them"}), "s3cret"))).is_ok());
        assert!(check(&strict, &request(&token(serde_json::json!({"sub": "u", "aud": "you", "iss": "them"}), "s3cret"))).is_err());
        assert!(check(&strict, &request(&token(serde_json::json!({"sub": "u"}), "s3cret"))).is_err());
    }

    #[test]
    fn a_secret_does_not_serve_for_a_key_set() {
        let keys = AuthPlan { secret: None, keys: Some(r#"{"keys":[]}"#.into()), ..plan() };
        assert!(check(&keys, &request(&token(serde_json::json!({"sub": "u"}), "s3cret"))).is_err());
    }
}
