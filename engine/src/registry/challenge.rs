//! What a 401 asks for: the header `WWW-Authenticate` (RFC 9110, 11.6.1; RFC 6750, 3).

/// One challenge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// User and password with every request.
    Basic,
    /// A token of a token service.
    Bearer {
        /// Its URL.
        realm: String,
        /// What the token is for; may be empty.
        service: String,
        /// What the token must allow, as the registry sees it.
        scopes: Vec<String>,
    },
}

/// Reads all challenges of one header. What is none, or is of another kind, is left out.
pub(super) fn parse(header: &str) -> Vec<Challenge> {
    let mut found = Vec::new();
    let mut rest = header.trim_start();
    while let Some((scheme, after)) = token(rest) {
        let (parameters, after) = parameters(after);
        let of = |name: &str| {
            let found = parameters.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
            found.map(|(_, value)| value.clone()).unwrap_or_default()
        };
        if scheme.eq_ignore_ascii_case("basic") {
            found.push(Challenge::Basic);
        } else if scheme.eq_ignore_ascii_case("bearer") && !of("realm").is_empty() {
            found.push(Challenge::Bearer {
                realm: of("realm"),
                service: of("service"),
                scopes: of("scope").split(' ').filter(|scope| !scope.is_empty()).map(str::to_owned).collect(),
            });
        }
        rest = after.trim_start_matches([',', ' ', '\t']);
    }
    found
}

/// A leading token (RFC 9110, 5.6.2).
fn token(text: &str) -> Option<(&str, &str)> {
    let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    let end = text.find(|c| !is_token(c)).unwrap_or(text.len());
    let (word, rest) = text.split_at_checked(end)?;
    (!word.is_empty()).then_some((word, rest))
}

/// `name=value` and `name="value"`, apart by commas, up to what begins another challenge.
fn parameters(mut rest: &str) -> (Vec<(String, String)>, &str) {
    let mut found = Vec::new();
    loop {
        let start = rest.trim_start_matches([',', ' ', '\t']);
        let Some((name, after)) = token(start) else { return (found, start) };
        let Some(after) = after.trim_start().strip_prefix('=') else { return (found, start) };
        let after = after.trim_start();
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted_string(quoted),
            None => token(after).map_or((String::new(), after), |(word, after)| (word.to_owned(), after)),
        };
        found.push((name.to_owned(), value));
        // Neither a comma nor the end: give up on the rest rather than go round without end.
        if !after.is_empty() && !after.trim_start().starts_with(',') {
            return (found, "");
        }
        rest = after;
    }
}

/// The rest of a quoted string, its escapes undone, and what follows.
fn quoted_string(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, text.get(at + 1..).unwrap_or_default()),
            '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: &str, scopes: &[&str]) -> Challenge {
        let scopes = scopes.iter().map(|scope| (*scope).to_owned()).collect();
        Challenge::Bearer { realm: realm.into(), service: service.into(), scopes }
    }

    #[test]
    fn the_challenge_of_docker_hub_is_read() {
        let header = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/busybox:pull""#;
        assert_eq!(
            parse(header),
            [bearer(
                "https://auth.docker.io/token",
                "registry.docker.io",
                &["repository:library/busybox:pull"]
            )]
        );
    }

    #[test]
    fn several_challenges_scopes_and_escapes_are_told_apart() {
        let header = r#"basic realm="a \"b\", c", BEARER realm = "https://x/t" , scope="a:b:pull c:d:pull,push", Digest nonce=1"#;
        assert_eq!(
            parse(header),
            [Challenge::Basic, bearer("https://x/t", "", &["a:b:pull", "c:d:pull,push"])]
        );
        assert_eq!(parse("Basic"), [Challenge::Basic]);
    }

    #[test]
    fn what_is_no_challenge_is_nothing() {
        for bad in ["", ",", "Bearer", "Bearer realm=\"\"", "=x", "\"", "Bearer realm=\"x", "Negotiate abc=="]
        {
            let found = parse(bad);
            assert!(
                found.iter().all(|one| matches!(one, Challenge::Bearer { realm, .. } if realm == "x")),
                "{bad}: {found:?}"
            );
        }
    }
}
