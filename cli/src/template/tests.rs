use super::*;
use serde_json::json;

fn fill(template: &str) -> Result<String, String> {
    let value = json!({
        "ID": "abc", "Size": 7, "Up": true, "Tags": ["a", "b"], "None": null, "Empty": [],
        "State": { "ExitCode": 3, "Status": "exited" },
        "Ports": { "80/tcp": [{ "HostIp": "0.0.0.0", "HostPort": "8080" }], "90/tcp": null }, "Labels": { "x.y": "z", "a": "1" },
    });
    Template::parse(template)?.render(&value)
}

#[test]
fn what_users_write_is_filled_in_as_go_does() {
    for (template, expected) in [
        ("{{.ID}}", "abc"),
        ("{{ .ID }}\\t{{.Size}}", "abc\t7"),
        ("{{.State.ExitCode}}", "3"),
        ("{{json .Tags}}", "[\"a\",\"b\"]"),
        ("{{.Tags | json}}", "[\"a\",\"b\"]"),
        ("{{.Tags}} {{.Labels}}", "[a b] map[a:1 x.y:z]"),
        ("{{index .Labels \"x.y\"}}{{index .Tags 1}}", "zb"),
        ("{{index .Labels \"none\"}}|{{index .Ports \"1/tcp\"}}", "|<no value>"),
        ("{{range .Tags}}<{{.}}>{{end}}", "<a><b>"),
        ("{{range .Empty}}x{{else}}none{{end}}", "none"),
        ("{{if .Up}}up{{else}}down{{end}}{{if .None}}x{{end}}", "up"),
        ("{{join .Tags \", \"}} {{len .Tags}} {{upper .ID}}", "a, b 2 ABC"),
        ("{{printf \"%s=%d %q %%\" .ID .Size .ID}}", "abc=7 \"abc\" %"),
        ("a {{- .ID -}} b", "aabcb"),
        ("{{\"}}\"}}{{/* a comment */}}", "}}"),
        ("{{if (index .Tags 0)}}y{{end}}{{lower (upper .ID)}}", "yabc"),
    ] {
        assert_eq!(fill(template).as_deref(), Ok(expected), "{template}");
    }
}

#[test]
fn what_is_not_there_or_not_known_is_an_error() {
    for bad in [
        "{{.Nope}}",
        "{{.ID.x}}",
        "{{",
        "{{.ID",
        "{{end}}",
        "{{range .Tags}}",
        "{{html .ID}}",
        "{{template \"x\"}}",
        "{{}}",
        "{{index .Tags 9}}",
        "{{upper .Size}}",
        "{{.ID .Size}}",
        "{{(json .ID}}",
        "{{\"x}}",
        "{{..}}",
        "{{.ID | .Size}}",
        "{{range .ID}}{{end}}",
        "{{printf \"%x\" .ID}}",
        "{{else if .Up}}",
    ] {
        assert!(fill(bad).is_err(), "{bad}");
    }
}

#[test]
fn deep_nesting_is_refused_and_does_not_overflow() {
    assert!(fill(&"{{if .Up}}".repeat(100_000)).is_err());
    assert!(fill(&format!("{{{{{}}}}}", "json (".repeat(100_000))).is_err());
}

#[test]
fn a_path_may_follow_parentheses() {
    for (template, expected) in [
        ("{{(index (index .Ports \"80/tcp\") 0).HostPort}}", "8080"),
        ("{{ (index (index .Ports \"80/tcp\") 0).HostIp }}", "0.0.0.0"),
        ("{{(.State).ExitCode}} {{len (.State).Status}}", "3 6"),
        ("{{(index .Tags 0 | upper)}}", "A"),
    ] {
        assert_eq!(fill(template).as_deref(), Ok(expected), "{template}");
    }
}

#[test]
fn values_are_compared_and_combined() {
    for (template, expected) in [
        ("{{eq .ID \"abc\"}} {{eq .ID \"x\" \"abc\"}} {{ne .Size 7}}", "true true false"),
        (
            "{{lt .Size 8}}{{le .Size 7}}{{gt .Size 7}}{{ge .Size 7}}{{gt .ID \"abb\"}}",
            "truetruefalsetruetrue",
        ),
        ("{{eq .None nil}}{{eq .Size 7.0}}{{lt .Size 7.5}}", "truetruetrue"),
        ("{{and .Up .ID}} {{and .None .Nope}} {{or .None .Size}} {{or .Up .Nope}}", "abc <no value> 7 true"),
        ("{{not .Up}} {{if and .Up (not .None) (eq .State.Status \"exited\")}}y{{end}}", "false y"),
    ] {
        assert_eq!(fill(template).as_deref(), Ok(expected), "{template}");
    }
}

#[test]
fn words_are_cut_joined_and_printed() {
    for (template, expected) in [
        ("{{println .ID .Size}}|{{print .Size .Size .ID}}", "abc 7\n|7 7abc"),
        (
            "{{split \"a/b/c\" \"/\"}} {{index (split \"a/b\" \"/\") 1}} {{join (split \"a/b\" \"/\") \"+\"}}",
            "[a b c] b a+b",
        ),
        (
            "{{title \"one two\"}} {{truncate .ID 2}} [{{pad .ID 1 2}}] {{slice .ID 1}} {{slice .ID 0 1}}",
            "One Two ab [ abc  ] bc a",
        ),
        ("{{len .Ports}} {{.Tags | len}}", "2 2"),
        (
            "{{printf \"%-5s|%5s|%03d|%.1f|%t|%.2s\" .ID .ID .Size .Size .Up .ID}}",
            "abc  |  abc|007|7.0|true|ab",
        ),
    ] {
        assert_eq!(fill(template).as_deref(), Ok(expected), "{template}");
    }
}

#[test]
fn blocks_chain_and_name_what_they_are_about() {
    for (template, expected) in [
        ("{{with .State}}{{.ExitCode}} {{$.ID}}{{end}}{{with .None}}x{{else}} none{{end}}", "3 abc none"),
        ("{{with $s := .State}}{{$s.ExitCode}}{{end}}", "3"),
        ("{{if .None}}a{{else if .Empty}}b{{else if .Up}}c{{else}}d{{end}}!", "c!"),
        (
            "{{if .None}}a{{else if .Empty}}b{{else}}d{{end}}{{with .None}}{{else with .ID}}{{.}}{{end}}",
            "dabc",
        ),
        ("{{range $k, $v := .Labels}}{{$k}}={{$v}};{{end}}", "a=1;x.y=z;"),
        ("{{range $i, $tag := .Tags}}{{if $i}}, {{end}}{{$tag}}{{end}}", "a, b"),
        ("{{range $tag := .Tags}}{{$tag}}{{.}}{{$.Size}}{{end}}", "aa7bb7"),
        (
            "{{range $p, $conf := .Ports}}{{$p}}{{with $conf}} -> {{(index $conf 0).HostPort}}{{end}} {{end}}",
            "80/tcp -> 8080 90/tcp ",
        ),
        ("{{$x := .ID}}{{range .Tags}}{{$x = .}}{{end}}{{$x}}", "b"),
        ("{{$x:=1}}{{if .Up}}{{$x := 2}}{{$x}}{{end}}{{$x}}", "21"),
        ("a {{-\n.ID\n-}} b", "aabcb"),
    ] {
        assert_eq!(fill(template).as_deref(), Ok(expected), "{template}");
    }
}

#[test]
fn labels_of_a_row_and_of_an_object_are_asked_for_by_name() {
    for (template, expected) in
        [("{{.Label \"a\"}}|{{.Label \"none\"}}", "1|"), ("{{if eq (.Label \"a\") \"1\"}}one{{end}}", "one")]
    {
        assert_eq!(fill(template).as_deref(), Ok(expected), "{template}");
    }
    // A row shows them as one string, which cannot be taken apart.
    let row = json!({ "ID": "abc", "Labels": "a=1,b=x,c=y,c=" });
    let labels = [("a", "1"), ("b", "x,c=y"), ("c", "")].map(|(name, value)| (name.into(), value.into()));
    let template = "{{.Label \"a\"}} {{$.Label \"b\"}} <{{.Label \"c\"}}> <{{.Label \"d\"}}> {{.Labels}}";
    let filled = Template::parse(template).unwrap().render_row(&row, &labels.into());
    assert_eq!(filled.as_deref(), Ok("1 x,c=y <> <> a=1,b=x,c=y,c="));
}

#[test]
fn what_docker_always_has_is_empty_and_what_is_not_built_is_named() {
    assert_eq!(
        fill("{{if .State.Health}}{{.State.Health.Status}}{{else}}none{{end}}").as_deref(),
        Ok("none")
    );
    assert_eq!(
        fill("{{.Labels.a}} {{.Labels.none}}{{if .Labels.none}}x{{end}}").as_deref(),
        Ok("1 <no value>")
    );
    for word in ["template", "define", "block", "break", "continue", "html"] {
        let why = fill(&format!("{{{{{word} \"x\"}}}}")).unwrap_err();
        assert!(why.contains(word) && why.contains("not supported"), "{why}");
    }
}
