//! Who somebody is and what they may do: tokens in, principals out.
//!
//! A token is a JWT (RFC 7519) signed with HS256. The algorithm belongs to the key, never to the token: what a
//! token's header says can only make it invalid. [`users`] holds the names and password hashes that a login is
//! checked against.

use std::fmt;
use std::sync::Once;

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use protocol::topic::Filter;
use serde::{Deserialize, Deserializer, Serialize};

use crate::config::units::{Text, texts};

pub mod users;

pub use users::Users;

/// Longest token, in bytes; a longer one is refused before it is looked at.
pub const MAX_TOKEN: usize = 8 << 10;
/// Most topic filters of one principal: each is matched with every topic asked for.
pub const MAX_FILTERS: usize = 64;
/// Seconds that an issuer's clock may be ahead of ours (`nbf`). For the end of a token (`exp`) there is no such
/// allowance.
pub const LEEWAY: u64 = 5;

/// What a principal may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Everything.
    Admin,
    /// Read, and send commands.
    Operator,
    /// Read. What a token without a role has.
    Viewer,
    /// Publish, and read.
    Ingest,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Admin, Self::Operator, Self::Viewer, Self::Ingest];

    /// Its name in tokens and files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Operator => "operator",
            Self::Viewer => "viewer",
            Self::Ingest => "ingest",
        }
    }

    /// The role of that name, if there is one.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.name() == name)
    }
}

texts!(Role);

impl Text for Role {
    const EXPECTED: &'static str = "a role: admin, operator, viewer or ingest";

    fn from_text(text: &str) -> Option<Self> {
        Self::from_name(text)
    }
    fn to_text(&self) -> String {
        self.name().into()
    }
}

/// Somebody whom a token has made known.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Principal {
    /// Claim `sub`: the id.
    pub subject: String,
    /// Claim `username`: the name to show; the id if the token has none.
    pub username: String,
    /// Claim `role`.
    pub role: Role,
    /// Claim `wells`: the topics that may be read and published to; `None` for all.
    pub wells: Option<Vec<Filter>>,
    /// Claim `exp`: seconds since the epoch from which on it is nobody any more.
    pub expires: u64,
}

impl Principal {
    /// Whether the role may do everything.
    pub fn is_admin(&self) -> bool {
        self.role == Role::Admin
    }

    /// Whether the role may publish. To which topics, [`Principal::may_see`] says.
    pub fn may_publish(&self) -> bool {
        matches!(self.role, Role::Admin | Role::Ingest)
    }

    /// Whether the topic is among those of the principal.
    pub fn may_see(&self, topic: &str) -> bool {
        self.wells.as_ref().is_none_or(|wells| wells.iter().any(|filter| filter.matches(topic)))
    }
}

/// Why a token is not accepted, or can't be issued. For logs: clients are told only that it is not valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthError {
    /// Longer than [`MAX_TOKEN`].
    TooLong,
    /// Not a JWT, or a claim is missing or of the wrong type.
    Malformed,
    /// Signed by another algorithm than the key's.
    Algorithm,
    /// The header has an extension that must be understood (`crit`, RFC 7515 section 4.1.11); none is.
    Extension,
    /// Not signed by this key.
    Signature,
    /// For somebody else, or for nobody where an audience is configured; or for somebody where none is.
    Audience,
    /// By another issuer than the configured one.
    Issuer,
    /// Its time is over.
    Expired,
    /// Its time has not come.
    NotYet,
    /// A role that there is not.
    Role,
    /// A topic filter that is none, or more than [`MAX_FILTERS`].
    Filter,
}

impl fmt::Display for AuthError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooLong => "the token is longer than 8 KiB",
            Self::Malformed => "the token is malformed, or lacks sub or exp",
            Self::Algorithm => "the token is not signed with HS256",
            Self::Extension => "the token's header has a critical extension",
            Self::Signature => "the token's signature does not fit the secret",
            Self::Audience => "the token is for another audience",
            Self::Issuer => "the token is from another issuer",
            Self::Expired => "the token has expired",
            Self::NotYet => "the token is not valid yet",
            Self::Role => "the token has an unknown role",
            Self::Filter => "the token has a malformed topic filter, or too many",
        })
    }
}

impl std::error::Error for AuthError {}

/// What tokens are signed with and checked against.
pub struct Keys {
    signs: EncodingKey,
    checks: DecodingKey,
    rules: Validation,
    audience: Option<String>,
    issuer: Option<String>,
}

impl Keys {
    /// One HS256 key. Where an audience or an issuer is given, tokens must name it.
    pub fn hs256(secret: &[u8], audience: Option<&str>, issuer: Option<&str>) -> Self {
        static PROVIDER: Once = Once::new();
        // Fails only if somebody else in this process has chosen one already.
        PROVIDER.call_once(|| {
            let _ = jsonwebtoken::crypto::aws_lc::DEFAULT_PROVIDER.install_default();
        });
        let mut rules = Validation::new(Algorithm::HS256);
        // Times are checked here, against the time given.
        rules.validate_exp = false;
        rules.validate_nbf = false;
        rules.required_spec_claims.clear();
        if let Some(audience) = audience {
            rules.set_audience(&[audience]);
            rules.required_spec_claims.insert("aud".into());
        }
        if let Some(issuer) = issuer {
            rules.set_issuer(&[issuer]);
            rules.required_spec_claims.insert("iss".into());
        }
        Self {
            signs: EncodingKey::from_secret(secret),
            checks: DecodingKey::from_secret(secret),
            rules,
            audience: audience.map(Into::into),
            issuer: issuer.map(Into::into),
        }
    }

    /// Whose token it is, `now` being in seconds since the epoch.
    ///
    /// # Errors
    /// Why it is nobody's.
    pub fn verify(&self, token: &str, now: u64) -> Result<Principal, AuthError> {
        if token.len() > MAX_TOKEN {
            return Err(AuthError::TooLong);
        }
        let token = jsonwebtoken::decode::<Claims>(token, &self.checks, &self.rules)
            .map_err(|error| reason(error.kind()))?;
        if token.header.crit.is_some() {
            return Err(AuthError::Extension);
        }
        let claims = token.claims;
        if now >= claims.exp {
            return Err(AuthError::Expired);
        }
        if claims.nbf.is_some_and(|from| from > now.saturating_add(LEEWAY)) {
            return Err(AuthError::NotYet);
        }
        let role = match claims.role {
            None => Role::Viewer,
            Some(name) => Role::from_name(&name).ok_or(AuthError::Role)?,
        };
        Ok(Principal {
            username: claims.username.unwrap_or_else(|| claims.sub.clone()),
            subject: claims.sub,
            role,
            wells: claims.wells.map(|wells| filters(&wells)).transpose()?,
            expires: claims.exp,
        })
    }

    /// A token for a principal, good for `ttl` seconds from `now` (seconds since the epoch); when the principal
    /// itself expires is not looked at.
    ///
    /// # Errors
    /// [`AuthError::TooLong`] or [`AuthError::Filter`] if it would not be accepted back.
    pub fn issue(&self, principal: &Principal, ttl: u64, now: u64) -> Result<String, AuthError> {
        let wells = principal.wells.as_ref();
        if wells.is_some_and(|wells| wells.len() > MAX_FILTERS) {
            return Err(AuthError::Filter);
        }
        let claims = Issued {
            sub: &principal.subject,
            username: &principal.username,
            role: principal.role.name(),
            wells: wells.map(|wells| wells.iter().map(Filter::as_str).collect()),
            exp: now.saturating_add(ttl),
            iat: now,
            aud: self.audience.as_deref(),
            iss: self.issuer.as_deref(),
        };
        let header = Header::new(Algorithm::HS256);
        let token =
            jsonwebtoken::encode(&header, &claims, &self.signs).map_err(|error| reason(error.kind()))?;
        if token.len() > MAX_TOKEN { Err(AuthError::TooLong) } else { Ok(token) }
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys(redacted)")
    }
}

/// Reads the topic filters of a principal.
///
/// # Errors
/// [`AuthError::Filter`] if one is malformed, or there are more than [`MAX_FILTERS`].
pub fn filters(texts: &[String]) -> Result<Vec<Filter>, AuthError> {
    if texts.len() > MAX_FILTERS {
        return Err(AuthError::Filter);
    }
    texts.iter().map(|text| Filter::parse(text).map_err(|_| AuthError::Filter)).collect()
}

/// What is read of a token. Times are whole numbers: `exp` as a string or a fraction is malformed.
#[derive(Deserialize)]
struct Claims {
    sub: String,
    username: Option<String>,
    #[serde(default, deserialize_with = "not_null")]
    role: Option<String>,
    #[serde(default, deserialize_with = "not_null")]
    wells: Option<Vec<String>>,
    exp: u64,
    #[serde(default, deserialize_with = "not_null")]
    nbf: Option<u64>,
}

/// A claim that may be absent, but not `null`: nobody is let in by a claim that says nothing.
fn not_null<'de, D: Deserializer<'de>, T: Deserialize<'de>>(claim: D) -> Result<Option<T>, D::Error> {
    T::deserialize(claim).map(Some)
}

#[derive(Serialize)]
struct Issued<'a> {
    sub: &'a str,
    username: &'a str,
    role: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    wells: Option<Vec<&'a str>>,
    exp: u64,
    iat: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    aud: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    iss: Option<&'a str>,
}

fn reason(kind: &ErrorKind) -> AuthError {
    match kind {
        ErrorKind::InvalidSignature => AuthError::Signature,
        ErrorKind::InvalidAlgorithm => AuthError::Algorithm,
        ErrorKind::InvalidAudience => AuthError::Audience,
        ErrorKind::InvalidIssuer => AuthError::Issuer,
        ErrorKind::MissingRequiredClaim(claim) if claim == "aud" => AuthError::Audience,
        ErrorKind::MissingRequiredClaim(claim) if claim == "iss" => AuthError::Issuer,
        _ => AuthError::Malformed,
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use proptest::prelude::*;

    use super::*;

    const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
    const NOW: u64 = 1_800_000_000;

    /// A token of these two parts, signed by hand.
    fn forge(header: &str, payload: &str, secret: &[u8], algorithm: Algorithm) -> String {
        let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload));
        let key = EncodingKey::from_secret(secret);
        let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, algorithm).unwrap();
        format!("{message}.{signature}")
    }

    fn signed(header: &str, payload: &str) -> String {
        forge(header, payload, SECRET, Algorithm::HS256)
    }

    fn principal(wells: Option<&[&str]>) -> Principal {
        Principal {
            subject: "user-1".into(),
            username: "ann".into(),
            role: Role::Operator,
            wells: wells.map(|all| all.iter().map(|text| Filter::parse(text).unwrap()).collect()),
            expires: NOW + 60,
        }
    }

    fn keys() -> Keys {
        Keys::hs256(SECRET, None, None)
    }

    #[test]
    fn headers_decide_nothing() {
        let keys = keys();
        let payload = format!(r#"{{"sub":"a","exp":{}}}"#, NOW + 1);
        for (header, verdict) in [
            (r#"{"alg":"HS256"}"#, Ok(())),
            (r#"{"alg":"HS256","typ":"JWT"}"#, Ok(())),
            (r#"{"alg":"HS256","kid":"../../dev/null"}"#, Ok(())),
            (r#"{"alg":"HS256","jku":"https://evil.example/keys","x":1}"#, Ok(())),
            (r#"{"alg":"none"}"#, Err(AuthError::Malformed)),
            (r#"{"alg":"None"}"#, Err(AuthError::Malformed)),
            (r#"{"alg":"hs256"}"#, Err(AuthError::Malformed)),
            (r#"{"alg":""}"#, Err(AuthError::Malformed)),
            (r#"{"alg":["HS256"]}"#, Err(AuthError::Malformed)),
            (r#"{"alg":"RS256","alg":"HS256"}"#, Err(AuthError::Malformed)),
            (r#"{"typ":"JWT"}"#, Err(AuthError::Malformed)),
            (r#"[]"#, Err(AuthError::Malformed)),
            ("", Err(AuthError::Malformed)),
            (r#"{"alg":"RS256"}"#, Err(AuthError::Algorithm)),
            (r#"{"alg":"ES256"}"#, Err(AuthError::Algorithm)),
            (r#"{"alg":"EdDSA"}"#, Err(AuthError::Algorithm)),
            (r#"{"alg":"HS384"}"#, Err(AuthError::Algorithm)),
            (r#"{"alg":"HS256","crit":["exp"]}"#, Err(AuthError::Extension)),
            (r#"{"alg":"HS256","crit":["b64"],"b64":false}"#, Err(AuthError::Extension)),
            (r#"{"alg":"HS256","crit":[]}"#, Err(AuthError::Extension)),
            (r#"{"alg":"HS256","crit":"exp"}"#, Err(AuthError::Malformed)),
        ] {
            let token = signed(header, &payload);
            assert_eq!(keys.verify(&token, NOW).map(drop), verdict, "{header}");
        }
    }

    #[test]
    fn claims_are_checked() {
        let keys = keys();
        for (payload, verdict) in [
            (r#""exp":1800000001"#, Ok(())),
            (r#""exp":1800000001,"jti":"x","iat":1.5,"other":{}"#, Ok(())),
            (r#""exp":1800000001,"nbf":1800000005"#, Ok(())),
            (r#""exp":1800000001,"nbf":1800000006"#, Err(AuthError::NotYet)),
            (r#""exp":1800000001,"nbf":"1800000000""#, Err(AuthError::Malformed)),
            (r#""exp":1800000001,"nbf":null"#, Err(AuthError::Malformed)),
            (r#""exp":1800000001,"nbf":-1"#, Err(AuthError::Malformed)),
            (r#""exp":1800000000"#, Err(AuthError::Expired)),
            (r#""exp":0"#, Err(AuthError::Expired)),
            (r#""exp":18446744073709551615"#, Ok(())),
            (r#""exp":18446744073709551616"#, Err(AuthError::Malformed)),
            (r#""exp":"1800000001""#, Err(AuthError::Malformed)),
            (r#""exp":1800000001.5"#, Err(AuthError::Malformed)),
            (r#""exp":1e30"#, Err(AuthError::Malformed)),
            (r#""exp":-1"#, Err(AuthError::Malformed)),
            (r#""exp":true"#, Err(AuthError::Malformed)),
            (r#""exp":null"#, Err(AuthError::Malformed)),
            (r#""exp":[1800000001]"#, Err(AuthError::Malformed)),
            (r#""exp":1,"exp":1800000001"#, Err(AuthError::Malformed)),
            (r#""iat":1"#, Err(AuthError::Malformed)),
            (r#""exp":1800000001,"role":"admin""#, Ok(())),
            (r#""exp":1800000001,"role":"Admin""#, Err(AuthError::Role)),
            (r#""exp":1800000001,"role":"root""#, Err(AuthError::Role)),
            (r#""exp":1800000001,"role":"""#, Err(AuthError::Role)),
            (r#""exp":1800000001,"role":null"#, Err(AuthError::Malformed)),
            (r#""exp":1800000001,"role":["admin"]"#, Err(AuthError::Malformed)),
            (r#""exp":1800000001,"wells":[]"#, Ok(())),
            (r#""exp":1800000001,"wells":["wells/+","A-1"]"#, Ok(())),
            (r#""exp":1800000001,"wells":"wells/+""#, Err(AuthError::Malformed)),
            (r#""exp":1800000001,"wells":null"#, Err(AuthError::Malformed)),
            (r#""exp":1800000001,"wells":[1]"#, Err(AuthError::Malformed)),
            (r#""exp":1800000001,"wells":[""]"#, Err(AuthError::Filter)),
            (r#""exp":1800000001,"wells":["wells/#/a"]"#, Err(AuthError::Filter)),
            (r#""exp":1800000001,"aud":"somebody""#, Err(AuthError::Audience)),
            (r#""exp":1800000001,"iss":"anybody""#, Ok(())),
        ] {
            let token = signed(r#"{"alg":"HS256"}"#, &format!(r#"{{"sub":"a",{payload}}}"#));
            assert_eq!(keys.verify(&token, NOW).map(drop), verdict, "{payload}");
        }
        for payload in ["[]", "1", "null", r#""a""#, "", "{", r#"{"exp":1800000001}"#] {
            let token = signed(r#"{"alg":"HS256"}"#, payload);
            assert_eq!(keys.verify(&token, NOW), Err(AuthError::Malformed), "{payload}");
        }
    }

    #[test]
    fn what_is_absent_has_a_meaning() {
        let token = signed(r#"{"alg":"HS256"}"#, r#"{"sub":"a","exp":1800000001}"#);
        let principal = keys().verify(&token, NOW).unwrap();
        assert_eq!((principal.subject.as_str(), principal.username.as_str()), ("a", "a"));
        assert_eq!((principal.role, principal.wells, principal.expires), (Role::Viewer, None, NOW + 1));
    }

    #[test]
    fn signatures_are_checked() {
        let keys = keys();
        let good = keys.issue(&principal(None), 60, NOW).unwrap();
        assert!(keys.verify(&good, NOW).is_ok());
        let (message, signature) = good.rsplit_once('.').unwrap();
        let (header, payload) = message.split_once('.').unwrap();
        let admin = URL_SAFE_NO_PAD.encode(r#"{"sub":"a","role":"admin","exp":1800000001}"#);
        let rs256 = URL_SAFE_NO_PAD.encode(r#"{"alg":"RS256"}"#);
        let none = URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#);
        for (token, verdict) in [
            (format!("{header}.{admin}.{signature}"), AuthError::Signature),
            (format!("{header}.{payload}."), AuthError::Signature),
            (format!("{header}.{payload}.{}", &signature[..20]), AuthError::Signature),
            (format!("{header}.{payload}.!{}", &signature[1..]), AuthError::Malformed),
            (format!("{header}.{payload}"), AuthError::Malformed),
            (format!("{good}.{signature}"), AuthError::Malformed),
            (format!(" {good}"), AuthError::Malformed),
            (format!("{rs256}.{payload}.{signature}"), AuthError::Algorithm),
            (format!("{none}.{payload}."), AuthError::Malformed),
            (String::new(), AuthError::Malformed),
            ("..".into(), AuthError::Malformed),
            ("é.é.é".into(), AuthError::Malformed),
            (forge(r#"{"alg":"HS256"}"#, "{}", b"", Algorithm::HS256), AuthError::Signature),
            (
                forge(r#"{"alg":"HS256","kid":"/dev/null"}"#, "{}", b"", Algorithm::HS256),
                AuthError::Signature,
            ),
            (forge(r#"{"alg":"HS512"}"#, "{}", SECRET, Algorithm::HS512), AuthError::Algorithm),
        ] {
            assert_eq!(keys.verify(&token, NOW), Err(verdict), "{token}");
        }
        let other = Keys::hs256(b"another secret of thirty-two byte", None, None);
        assert_eq!(other.verify(&good, NOW), Err(AuthError::Signature));
    }

    #[test]
    fn long_tokens_are_not_looked_at() {
        let keys = keys();
        let of = |len: usize| {
            let payload = |fill| format!(r#"{{"sub":"a","exp":1800000001,"x":"{}"}}"#, "x".repeat(fill));
            let longest = |fill: &usize| signed(r#"{"alg":"HS256"}"#, &payload(*fill)).len() <= len;
            signed(r#"{"alg":"HS256"}"#, &payload((0..len).rev().find(longest).unwrap()))
        };
        let longest = of(MAX_TOKEN);
        assert!(longest.len() > MAX_TOKEN - 3 && keys.verify(&longest, NOW).is_ok());
        assert_eq!(keys.verify(&of(MAX_TOKEN + 3), NOW), Err(AuthError::TooLong));
        assert_eq!(keys.verify(&"x".repeat(20_000), NOW), Err(AuthError::TooLong));
    }

    #[test]
    fn audience_and_issuer_are_demanded_where_configured() {
        let keys = Keys::hs256(SECRET, Some("wellhead"), Some("plant"));
        for (claims, verdict) in [
            (r#""aud":"wellhead","iss":"plant""#, Ok(())),
            (r#""aud":["x","wellhead"],"iss":"plant""#, Ok(())),
            (r#""aud":"x","iss":"plant""#, Err(AuthError::Audience)),
            (r#""aud":[],"iss":"plant""#, Err(AuthError::Audience)),
            (r#""aud":5,"iss":"plant""#, Err(AuthError::Audience)),
            (r#""iss":"plant""#, Err(AuthError::Audience)),
            (r#""aud":"wellhead","iss":"x""#, Err(AuthError::Issuer)),
            (r#""aud":"wellhead","iss":5"#, Err(AuthError::Issuer)),
            (r#""aud":"wellhead""#, Err(AuthError::Issuer)),
        ] {
            let payload = format!(r#"{{"sub":"a","exp":1800000001,{claims}}}"#);
            let token = signed(r#"{"alg":"HS256"}"#, &payload);
            assert_eq!(keys.verify(&token, NOW).map(drop), verdict, "{claims}");
        }
        let own = keys.issue(&principal(None), 60, NOW).unwrap();
        assert!(keys.verify(&own, NOW).is_ok());
    }

    #[test]
    fn roles_and_filters_decide() {
        for (role, publishes) in
            [(Role::Admin, true), (Role::Ingest, true), (Role::Operator, false), (Role::Viewer, false)]
        {
            assert_eq!(Principal { role, ..principal(None) }.may_publish(), publishes, "{role:?}");
            assert_eq!(Role::from_name(role.name()), Some(role));
        }
        for (wells, topic, sees) in [
            (None, "wells/A", true),
            (Some(&[][..]), "wells/A", false),
            (Some(&["wells/A"][..]), "wells/A", true),
            (Some(&["wells/A"][..]), "wells/B", false),
            (Some(&["A", "B"][..]), "wells/B", true),
            (Some(&["wells/+"][..]), "devices/A", false),
            (Some(&["#"][..]), "devices/A", true),
        ] {
            assert_eq!(principal(wells).may_see(topic), sees, "{wells:?} {topic}");
        }
    }

    #[test]
    fn no_token_is_issued_that_would_not_be_accepted() {
        let keys = keys();
        let many: Vec<_> = (0..=MAX_FILTERS).map(|n| format!("wells/{n}")).collect();
        let many: Vec<_> = many.iter().map(String::as_str).collect();
        assert_eq!(keys.issue(&principal(Some(&many)), 60, NOW), Err(AuthError::Filter));
        assert!(keys.issue(&principal(Some(&many[1..])), 60, NOW).is_ok());
        let long = "x".repeat(200);
        let long = vec![long.as_str(); MAX_FILTERS];
        assert_eq!(keys.issue(&principal(Some(&long)), 60, NOW), Err(AuthError::TooLong));
        assert_eq!(filters(&vec!["a".into(); MAX_FILTERS + 1]), Err(AuthError::Filter));
    }

    #[test]
    fn keys_are_not_shown() {
        assert!(!format!("{:?}", keys()).contains("0123"));
    }

    proptest! {
        #[test]
        fn an_issued_token_gives_the_principal_back(
            subject in ".{1,40}",
            username in ".{0,40}",
            role in 0usize..4,
            wells in prop::option::of(prop::collection::vec("[a-zA-Z0-9 -]{1,12}", 0..5)),
            ttl in 1u64..100_000,
        ) {
            let wells = wells.map(|wells| filters(&wells).unwrap());
            let sent = Principal {
                subject, username, role: Role::ALL[role], wells, expires: NOW + ttl,
            };
            let keys = keys();
            let token = keys.issue(&sent, ttl, NOW).unwrap();
            prop_assert_eq!(keys.verify(&token, NOW + ttl), Err(AuthError::Expired));
            prop_assert_eq!(keys.verify(&token, NOW + ttl - 1), Ok(sent));
        }

        #[test]
        fn no_input_is_too_odd(token in ".{0,200}", now in any::<u64>()) {
            prop_assert!(keys().verify(&token, now).is_err());
        }

        #[test]
        fn one_changed_byte_is_one_too_many(place in any::<prop::sample::Index>(), flip in 1u8..128) {
            let keys = keys();
            let token = keys.issue(&principal(None), 60, NOW).unwrap();
            let mut bytes = token.clone().into_bytes();
            let place = place.index(bytes.len());
            bytes[place] ^= flip;
            if let Ok(changed) = std::str::from_utf8(&bytes) {
                prop_assert!(keys.verify(changed, NOW).is_err(), "{}", changed);
            }
        }
    }
}
