use super::*;

fn faults(text: &str) -> Vec<String> {
    with_env(text, &[]).map_or_else(
        |faults| faults.iter().map(ToString::to_string).collect(),
        |_| Vec::new(),
    )
}

fn with_env(text: &str, env: &[(&str, &str)]) -> Result<HostSpec, Vec<ManifestFault>> {
    let env: Environment = env
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect();
    parse(Path::new("berth.toml"), text, &env)
}

const GOOD: &str = r#"
[plugins.hello]
component = "hello.wasm"
[[routes]]
path = "/hello/*"
plugin = "hello"
access = "public"
"#;

#[test]
fn empty_manifest_has_the_documented_defaults() {
    let spec = with_env("", &[]).unwrap();
    assert_eq!(spec.listen.to_string(), "127.0.0.1:8080");
    assert_eq!(spec.admin.unwrap().to_string(), "127.0.0.1:8081");
    assert_eq!(
        spec.limits,
        HostLimits {
            header_bytes: 65_536,
            header_time: Duration::from_secs(10),
            body_bytes: 1_048_576,
            idle_time: Duration::from_secs(30),
            connections: 10_000,
            http2_streams: 128,
            instances: 256,
            memory_budget: 4 << 30,
            drain_time: Duration::from_secs(30),
        }
    );
}

#[test]
fn tls_needs_both_files() {
    let spec = with_env("[http]\ntls_certificate = \"c.pem\"\ntls_key = \"k.pem\"", &[]).unwrap();
    let files = spec.tls.unwrap();
    assert_eq!((files.certificate, files.key), ("c.pem".into(), "k.pem".into()));
    assert_eq!(
        faults("[http]\ntls_key = \"k.pem\""),
        ["berth.toml:2:11: http.tls_key: means nothing without `tls_certificate`; add it, or leave this out"]
    );
    assert_eq!(
        faults("[http]\ntls_certificate = \"c.pem\""),
        ["berth.toml:2:19: http.tls_certificate: means nothing without `tls_key`; add it, or leave this out"]
    );
}

#[test]
fn plugin_takes_its_limits_from_its_table_then_from_limits_then_the_defaults() {
    let text = r#"
[limits]
cpu = "1s"
memory = "32MiB"
[plugins.a]
component = "a.wasm"
limits = { memory = "16MiB", concurrency = 3 }
"#;
    let spec = with_env(text, &[]).unwrap();
    let limits = spec.plugins[0].limits;
    assert_eq!(
        limits,
        PluginLimits {
            memory: 16 << 20,
            cpu: Duration::from_secs(1),
            wall: Duration::from_secs(30),
            concurrency: 3
        }
    );
}

#[test]
fn paths_are_relative_to_the_manifest() {
    let spec = parse(Path::new("/etc/berth/berth.toml"), GOOD, &Environment::empty()).unwrap();
    assert_eq!(spec.plugins[0].component, Path::new("/etc/berth/hello.wasm"));
}

#[test]
fn environment_wins_over_the_file() {
    let text = "[http]\nlisten = \"127.0.0.1:1\"\nconnections = 5\n";
    let env = [
        ("BERTH_HTTP_LISTEN", "[::1]:2"),
        ("BERTH_ADMIN_LISTEN", "off"),
        ("BERTH_HTTP_CONNECTIONS", "7"),
        ("BERTH_LIMITS_MEMORY", "8MiB"),
    ];
    let spec = with_env(&format!("{text}{GOOD}"), &env).unwrap();
    assert_eq!(
        (
            spec.listen.to_string().as_str(),
            spec.admin,
            spec.limits.connections
        ),
        ("[::1]:2", None, 7)
    );
    assert_eq!(spec.plugins[0].limits.memory, 8 << 20);
    let faults = with_env("", &[("BERTH_HTTP_LISTEN", "8080")]).unwrap_err();
    assert_eq!(
        faults[0].to_string(),
        "berth.toml: the environment variable BERTH_HTTP_LISTEN: \"8080\" is not an address with a port, as in \"127.0.0.1:8080\" or \"[::1]:8080\""
    );
}

#[test]
fn listeners_may_share_a_port_or_an_address_but_not_both() {
    for (http, admin) in [
        ("127.0.0.1:0", "127.0.0.1:0"),
        ("127.0.0.1:7000", "127.0.0.2:7000"),
        ("127.0.0.1:7000", "[::1]:7000"),
        ("[::1]:7000", "0.0.0.0:7000"),
        ("127.0.0.1:8081", "off"),
    ] {
        let text = format!("[http]\nlisten = \"{http}\"\n[admin]\nlisten = \"{admin}\"\n");
        assert_eq!(faults(&text), [""; 0], "{text}");
    }
}

#[test]
fn misspelt_variable_of_a_section_is_a_fault() {
    let strangers = [
        ("BERTH_BIN", "x"),
        ("BERTH_GUESTS", "x"),
        ("BERTH_WASMTIME", "x"),
        ("BERTH_HTTP_LISTEN", "127.0.0.1:0"),
        ("HTTP_LISEN", "x"),
    ];
    assert!(with_env("", &strangers).is_ok());
    let faults = with_env("", &[("BERTH_HTTP_LISEN", "x"), ("BERTH_LIMITS_ZEBRA", "x")]).unwrap_err();
    let messages: Vec<String> = faults.iter().map(ToString::to_string).collect();
    assert_eq!(
        messages,
        [
            "berth.toml: the environment variable BERTH_HTTP_LISEN: stands for no key; did you mean BERTH_HTTP_LISTEN?",
            "berth.toml: the environment variable BERTH_LIMITS_ZEBRA: stands for no key; there is BERTH_LIMITS_INSTANCES, BERTH_LIMITS_TOTAL_MEMORY, BERTH_LIMITS_MEMORY, BERTH_LIMITS_CPU, BERTH_LIMITS_WALL, BERTH_LIMITS_CONCURRENCY",
        ]
    );
}

#[test]
fn host_routes_are_disjoint() {
    let mut router = Router::new();
    for (path, method) in fixed_routes(true) {
        router.add(path, &Methods::Only(vec![method]), (), 0).unwrap();
    }
}

/// Each faulty manifest with all of its messages, exactly.
#[test]
fn faulty_manifests_say_what_is_wrong_and_what_is_right() {
    let route = |path: &str, more: &str| {
        format!(
            "[plugins.hello]\ncomponent = \"hello.wasm\"\n[[routes]]\npath = {path}\nplugin = \"hello\"\n{more}\n"
        )
    };
    let public = "access = \"public\"";
    let table: Vec<(String, Vec<&str>)> = vec![
        (
            "[http]\nlisen = \"127.0.0.1:80\"\n".into(),
            vec!["berth.toml:2:1: http.lisen: there is no such key; did you mean \"listen\"?"],
        ),
        (
            "[htp]\n".into(),
            vec!["berth.toml:1:2: htp: there is no such key; did you mean \"http\"?"],
        ),
        (
            "[http]\nzebra = 1\n".into(),
            vec![
                "berth.toml:2:1: http.zebra: there is no such key; known here: listen, tls_certificate, tls_key, header_bytes, header_time, body_bytes, idle_time, connections, http2_streams, drain_time",
            ],
        ),
        (
            "[http]\nlisten = 8080\n".into(),
            vec!["berth.toml:2:10: http.listen: must be a string, not an integer"],
        ),
        (
            "[http]\nlisten = \"localhost:8080\"\n".into(),
            vec![
                "berth.toml:2:10: http.listen: \"localhost:8080\" is not an address with a port, as in \"127.0.0.1:8080\" or \"[::1]:8080\"",
            ],
        ),
        (
            "[http]\nheader_time = 10\n".into(),
            vec!["berth.toml:2:15: http.header_time: must be a time with its unit as in \"500ms\" or \"10s\", not an integer"],
        ),
        (
            "[http]\nidle_time = \"0s\"\n".into(),
            vec!["berth.toml:2:13: http.idle_time: \"0s\" is out of bounds; from \"1ms\" to \"1day\""],
        ),
        (
            "[http]\nheader_bytes = \"1KiB\"\nbody_bytes = \"2 parsecs\"\n".into(),
            vec![
                "berth.toml:2:16: http.header_bytes: 1.0KiB is too little; at least 8.0KiB",
                "berth.toml:3:14: http.body_bytes: \"2 parsecs\" is not a size, as in \"64MiB\" or \"512KiB\"",
            ],
        ),
        (
            "[limits]\ninstances = 0\nconcurrency = -3\n".into(),
            vec![
                "berth.toml:2:13: limits.instances: 0 is too little; at least 1",
                "berth.toml:3:15: limits.concurrency: -3 is too little; at least 1",
            ],
        ),
        (
            "[plugins.Hello]\ncomponent = \"x\"\n".into(),
            vec![
                "berth.toml:1:10: plugins.Hello: a plugin's name has 1 to 64 lower-case letters, digits and \"-\", as in \"my-handler\"",
            ],
        ),
        (
            "[plugins.hello]\n".into(),
            vec!["berth.toml:1:1: plugins.hello.component: is missing; add the path of the plugin's .wasm file"],
        ),
        (
            "[plugins.a]\ncomponent = \"a\"\npolicy = \"autz\"\n".into(),
            vec!["berth.toml:3:10: plugins.a.policy: \"autz\" is not a policy; did you mean \"auth\"?"],
        ),
        (
            "[plugins.a]\ncomponent = \"a\"\npolicy = \"auth\"\n[plugins.b]\ncomponent = \"b\"\npolicy = \"auth\"\n".into(),
            vec!["berth.toml:4:10: plugins.b.policy: \"a\" is the auth policy already, and there is one of each"],
        ),
        (
            "[plugins.a]\ncomponent = \"a\"\nreuse = \"concurent\"\n".into(),
            vec!["berth.toml:3:9: plugins.a.reuse: \"concurent\" is not a kind of reuse; did you mean \"concurrent\"?"],
        ),
        (
            "[plugins.a]\ncomponent = \"a\"\nreuse = \"serial\"\nreuse_concurrency = 4\n".into(),
            vec!["berth.toml:4:21: plugins.a.reuse_concurrency: means nothing without `reuse = \"concurrent\"`; add it, or leave this out"],
        ),
        (
            "[plugins.a]\ncomponent = \"a\"\ngrants = { logs = true, sql = true }\n".into(),
            vec![
                "berth.toml:3:12: plugins.a.grants.logs: there is no such grant; did you mean \"log\"?",
                "berth.toml:3:25: plugins.a.grants.sql: there is no such grant; there is \"settings\" and \"log\"",
            ],
        ),
        (
            "[plugins.a]\ncomponent = \"a\"\ngrants = { log = \"yes\" }\nsettings = { list = [1] }\n".into(),
            vec![
                "berth.toml:3:18: plugins.a.grants.log: must be true or false, not a string",
                "berth.toml:4:14: plugins.a.settings.list: a setting is a string, a number or a boolean",
            ],
        ),
        (
            "[plugins.a]\ncomponent = \"a\"\nlimits = \"64MiB\"\n".into(),
            vec!["berth.toml:3:10: plugins.a.limits: must be a table, not a string"],
        ),
        (
            "[plugins.a]\ncomponent = \"a\"\nlimits = { memory = \"64MiB\", cpus = \"1s\" }\n".into(),
            vec!["berth.toml:3:30: plugins.a.limits.cpus: there is no such key; did you mean \"cpu\"?"],
        ),
        (
            route("\"/hello/*\"", ""),
            vec![
                "berth.toml:3:1: routes[0].access: is missing; add who may call it: \"public\", \"user\" or \"role:<name>\"",
            ],
        ),
        (
            route("\"/hello/*\"", "access = \"role:\""),
            vec!["berth.toml:6:10: routes[0].access: \"role:\" is not \"public\", \"user\" or \"role:<name>\""],
        ),
        (
            route("\"/hello/*\"", "access = \"user\""),
            vec!["berth.toml:6:10: routes[0].access: nobody can sign in: no plugin has `policy = \"auth\"`"],
        ),
        (
            route("\"hello\"", public),
            vec!["berth.toml:4:8: routes[0].path: \"hello\": a path begins with \"/\""],
        ),
        (
            route("\"/a/*/b\"", public),
            vec![
                "berth.toml:4:8: routes[0].path: \"/a/*/b\": \"*\" stands alone as the last segment, as in \"/files/*\"",
            ],
        ),
        (
            route("\"/health\"", public),
            vec!["berth.toml:4:8: routes[0].path: \"/health\" is the host's own; choose another path"],
        ),
        (
            route("\"/x\"", "access = \"public\"\nmethods = [\"GTE\", \"PURGE\"]"),
            vec![
                "berth.toml:7:12: routes[0].methods: \"GTE\" is not a method; did you mean \"GET\"?",
                "berth.toml:7:19: routes[0].methods: \"PURGE\" is not a method; there is \"GET\", \"HEAD\", \"POST\", \"PUT\", \"PATCH\", \"DELETE\", \"OPTIONS\" and \"TRACE\"",
            ],
        ),
        (
            route("\"/x\"", "access = \"public\"\nmethods = []"),
            vec!["berth.toml:7:11: routes[0].methods: the list is empty; leave the key out to take every method"],
        ),
        (
            format!("{GOOD}[[routes]]\npath = \"/hello/*\"\nplugin = \"helo\"\naccess = \"public\"\n"),
            vec![
                "berth.toml:9:8: routes[1].path: routes[0] takes \"/hello/*\" already, with a method in common",
                "berth.toml:10:10: routes[1].plugin: there is no plugin \"helo\"; did you mean \"hello\"?",
            ],
        ),
        (
            "[plugins.auth]\ncomponent = \"a\"\npolicy = \"auth\"\n[[routes]]\npath = \"/a\"\nplugin = \"auth\"\naccess = \"public\"\n".into(),
            vec![
                "berth.toml:6:10: routes[0].plugin: \"auth\" is the auth policy, whose routes are fixed; a route leads to a handler",
            ],
        ),
        (
            "[[routes]]\npath = \"/a\"\nplugin = \"zzzzzzzz\"\naccess = \"public\"\n".into(),
            vec!["berth.toml:3:10: routes[0].plugin: there is no plugin \"zzzzzzzz\"; add a table [plugins.zzzzzzzz]"],
        ),
        (
            "[plugins.a]\ncomponent = \"a\"\nreuse_count = 7\n".into(),
            vec!["berth.toml:3:15: plugins.a.reuse_count: means nothing without `reuse = \"serial\"`; add it, or leave this out"],
        ),
        (
            route("\"/x\"", "access = \"public\"\nmethods = [\"GET\", \"GET\"]"),
            vec!["berth.toml:7:11: routes[0].methods: \"GET\" is listed twice; once is enough"],
        ),
        (
            route("\"/health\"", "access = \"public\"\nmethods = [\"GTE\"]"),
            vec!["berth.toml:7:12: routes[0].methods: \"GTE\" is not a method; did you mean \"GET\"?"],
        ),
        ("routes = 7\n".into(), vec!["berth.toml:1:10: routes: must be an array of tables, written as [[routes]]"]),
        (
            "[[plugins.b]]\ncomponent = \"b\"\n".into(),
            vec!["berth.toml:1:1: plugins.b: must be a table, not an array"],
        ),
        (
            "[http]\nlisten = \"127.0.0.1:7000\"\n[admin]\nlisten = \"0.0.0.0:7000\"\n".into(),
            vec!["berth.toml:4:10: admin.listen: \"0.0.0.0:7000\" and `http.listen`, \"127.0.0.1:7000\", are the same address; choose another port, or \"off\""],
        ),
        (
            "[http]\nlisten = \"[::]:8081\"\n".into(),
            vec!["berth.toml:2:10: admin.listen: \"127.0.0.1:8081\" and `http.listen`, \"[::]:8081\", are the same address; choose another port, or \"off\""],
        ),
        ("plugins = []\n".into(), vec!["berth.toml:1:11: plugins: must be a table, not an array"]),
    ];
    assert!(table.len() >= 25);
    for (text, expected) in table {
        assert_eq!(faults(&text), expected, "in:\n{text}");
    }
}

#[test]
fn faults_of_syntax_and_of_meaning_come_in_one_run() {
    let found = faults("[http]\nlisten = \nconections = 7\n");
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].starts_with("berth.toml:2:"), "{found:?}");
    assert_eq!(
        found[1],
        "berth.toml:3:1: http.conections: there is no such key; did you mean \"connections\"?"
    );
}

#[test]
fn manifest_that_cannot_be_read_says_so() {
    let none = load(Path::new("/nowhere/berth.toml"), &Environment::empty()).unwrap_err();
    assert_eq!(
        none[0].to_string(),
        "/nowhere/berth.toml: there is no such file; name the manifest with --config"
    );
}
