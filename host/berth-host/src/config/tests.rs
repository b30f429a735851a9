use tracing::level_filters::LevelFilter;

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
fn limits_of_attempts_have_defaults_and_can_be_off() {
    let spec = with_env("", &[]).unwrap();
    assert_eq!(spec.identity, IdentitySpec::default());
    assert_eq!(spec.trusted_proxies, TrustedProxies::default());
    let text = "[identity]\naddress_rate = \"off\"\naccount_rate = \"3/10s\"\naudit_days = 7\n\
                [http]\ntrusted_proxies = [\"10.0.0.0/8\", \"::1\"]";
    let spec = with_env(text, &[]).unwrap();
    let rate = spec.identity.account_rate.unwrap();
    assert_eq!((rate.count.get(), rate.per), (3, Duration::from_secs(10)));
    assert_eq!((spec.identity.address_rate, spec.identity.audit_days), (None, 7));
    assert!(spec.trusted_proxies.trusts("10.1.2.3".parse().unwrap()));
    let minute = with_env("", &[("BERTH_IDENTITY_ACCOUNT_RATE", "60/min")]).unwrap();
    let rate = minute.identity.account_rate.unwrap();
    assert_eq!((rate.count.get(), rate.per), (60, Duration::from_secs(60)));
    for (key, message) in [
        (
            "[identity]\naccount_rate = \"often\"",
            "is not a number within a time",
        ),
        ("[identity]\naccount_rate = \"0/min\"", "0 is out of bounds"),
        (
            "[identity]\naccount_rate = \"5/0s\"",
            "is not a number within a time",
        ),
        ("[identity]\naudit_days = 0", "is too little"),
        ("[http]\ntrusted_proxies = \"::1\"", "must be an array"),
        (
            "[http]\ntrusted_proxies = [\"proxy\"]",
            "is not an address or a block",
        ),
        (
            "[http]\ntrusted_proxies = [\"10.0.0.0/33\"]",
            "the prefix is at most 32",
        ),
        (
            "[http]\ntrusted_proxies = [\"10.1.0.0/8\"]",
            "did you mean \"10.0.0.0/8\"?",
        ),
    ] {
        let found = faults(key);
        assert!(found.len() == 1 && found[0].contains(message), "{key}: {found:?}");
    }
}

#[test]
fn cors_is_off_and_a_route_can_have_its_own() {
    assert_eq!(with_env(GOOD, &[]).unwrap().routes[0].cors, None);
    let text = format!("[http.cors]\norigins = [\"https://a.test\"]\n{GOOD}");
    let spec = with_env(&text, &[]).unwrap();
    assert_eq!(spec.routes[0].cors, spec.cors);
    let own = format!("{text}cors = {{ origins = [\"*\"], max_age = \"1h\" }}\n");
    let cors = with_env(&own, &[]).unwrap().routes[0].cors.clone().unwrap();
    assert_eq!(
        (&cors.origins, cors.credentials, cors.max_age),
        (&Origins::Any, false, Duration::from_secs(3600))
    );
    let at = |cors: &str| faults(&format!("[http]\ncors = {cors}\n"));
    assert_eq!(
        at("{ origins = [\"*\"], credentials = true }"),
        [
            "berth.toml:2:41: http.cors.credentials: can't be had for every origin: any page could call as its visitor; name the origins"
        ]
    );
    assert_eq!(
        at("{ headers = [\"x\"] }"),
        [
            "berth.toml:2:8: http.cors.origins: is missing; add who may call, as in [\"https://app.example.com\"], or [\"*\"] for everybody"
        ]
    );
    for bad in ["https://a.test/", "a.test", "https://A.test", "https://", "null"] {
        assert_eq!(
            at(&format!("{{ origins = [\"{bad}\"] }}")),
            [format!(
                "berth.toml:2:21: http.cors.origins: \"{bad}\" is not an origin: write \"*\", or scheme and host without a path, as in \"https://app.example.com\""
            )]
        );
    }
    assert_eq!(
        at("{ origins = [\"*\"], headers = [\"two words\"] }"),
        [
            "berth.toml:2:38: http.cors.headers: \"two words\" is not the name of a header, as in \"content-type\""
        ]
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
fn traces_are_off_until_a_collector_is_named() {
    assert_eq!(
        with_env("[telemetry]\nsample = \"5%\"\n", &[]).unwrap().telemetry,
        None
    );
    let spec = with_env("[telemetry]\notlp = \"http://127.0.0.1:4318/\"\n", &[]).unwrap();
    let expected = TelemetrySpec {
        endpoint: "http://127.0.0.1:4318/v1/traces".to_owned(),
        service_name: "berth".to_owned(),
        sample: 1.0,
    };
    assert_eq!(spec.telemetry, Some(expected));
    let env = [
        ("BERTH_TELEMETRY_OTLP", "http://[::1]:4318/otel"),
        ("BERTH_TELEMETRY_SAMPLE", "0.5 %"),
    ];
    let spec = with_env("", &env).unwrap().telemetry.unwrap();
    assert_eq!(
        (spec.endpoint.as_str(), spec.sample),
        ("http://[::1]:4318/otel/v1/traces", 0.005)
    );
    let off = [("BERTH_TELEMETRY_OTLP", "off")];
    let spec = with_env("[telemetry]\notlp = \"http://127.0.0.1:4318\"\n", &off);
    assert_eq!(spec.unwrap().telemetry, None);
}

#[test]
fn a_guest_is_heard_at_info_unless_its_table_says_otherwise() {
    let text = "[plugins.a]\ncomponent = \"a\"\n[plugins.b]\ncomponent = \"b\"\nlog = \"off\"\n";
    let spec = with_env(text, &[]).unwrap();
    let levels: Vec<LevelFilter> = spec.plugins.iter().map(|p| p.log).collect();
    assert_eq!(levels, [LevelFilter::INFO, LevelFilter::OFF]);
}

#[test]
fn host_routes_are_disjoint() {
    let mut router = Router::new();
    for (path, method) in fixed_routes(true, true) {
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
    // One entry a line, from the fourth.
    let hosts = |entries: &[&str]| {
        let lines: Vec<String> = entries.iter().map(|e| format!("{e:?},\n")).collect();
        format!(
            "[plugins.a]\ncomponent = \"a\"\ngrants.http = [\n{}]\n",
            lines.concat()
        )
    };
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
                "berth.toml:2:1: http.zebra: there is no such key; known here: listen, tls_certificate, tls_key, trusted_proxies, cors, header_bytes, header_time, body_bytes, idle_time, connections, http2_streams, drain_time",
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
            "[plugins.a]\ncomponent = \"a\"\ngrants = { logs = true, rum = true }\n".into(),
            vec![
                "berth.toml:3:12: plugins.a.grants.logs: there is no such grant; did you mean \"log\"?",
                "berth.toml:3:25: plugins.a.grants.rum: there is no such grant; there is \"settings\", \"log\", \"sql\", \"passwords\", \"tokens\", \"sessions\", \"http\" and \"folders\"",
            ],
        ),
        (
            "[plugins.a]\ncomponent = \"a\"\ngrants = { sql = true }\n".into(),
            vec![
                "berth.toml:3:18: plugins.a.grants.sql: must be a list of the schemas that the plugin may use, as in [\"notes\"], not a boolean",
            ],
        ),
        (
            "[plugins.a]\ncomponent = \"a\"\ngrants = { sql = [\"x\", \"identity\"] }\n[plugins.b]\ncomponent = \"b\"\ngrants = { sql = [\"identity\", \"x\"] }\n".into(),
            vec![
                "berth.toml:6:18: plugins.b.grants.sql: the schema \"x\" is the plugin \"a\"'s already; choose another name, or make the two plugins one",
            ],
        ),
        (
            "[plugins.a]\ncomponent = \"a\"\ngrants = { sql = [\"Notes\", \"berth\"] }\n".into(),
            vec![
                "berth.toml:3:19: plugins.a.grants.sql: \"Notes\" can't be a schema here: a name has 1 to 63 lower-case letters, digits and \"_\", and begins with no digit",
                "berth.toml:3:28: plugins.a.grants.sql: \"berth\" is not for plugins; choose another name",
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
            "[plugins.a]\ncomponent = \"a\"\ngrants = { http = true }\n".into(),
            vec![
                "berth.toml:3:19: plugins.a.grants.http: must be a list of the hosts that the plugin may call, as in [\"api.example.com\"], not a boolean",
            ],
        ),
        (
            "[plugins.a]\ncomponent = \"a\"\ngrants = { http = [] }\n".into(),
            vec!["berth.toml:3:19: plugins.a.grants.http: the list is empty; leave the key out to allow no host"],
        ),
        (
            hosts(&["ftp://a.example", "https://a.example/path", "a b", "a.example:0", "a.*.example", "*a.example"]),
            vec![
                "berth.toml:4:1: plugins.a.grants.http: \"ftp\" is not a scheme; there is \"http\" and \"https\"",
                "berth.toml:5:1: plugins.a.grants.http: a path can't be granted; write the host alone, as in \"a.example\"",
                "berth.toml:6:1: plugins.a.grants.http: \"a b\" is not a host, as in \"api.example.com\", \"*.example.com\", \"api.example.com:8443\" or \"10.0.0.0/8\"",
                "berth.toml:7:1: plugins.a.grants.http: \"0\" is not a port; it is a number from 1 to 65535, as in \"api.example.com:8443\"",
                "berth.toml:8:1: plugins.a.grants.http: \"a.*.example\": \"*\" stands alone, or for the first part of a name, as in \"*.example.com\"",
                "berth.toml:9:1: plugins.a.grants.http: \"*a.example\": \"*\" stands alone, or for the first part of a name, as in \"*.example.com\"",
            ],
        ),
        (
            hosts(&["10.1.2.3/8", "10.0.0.0/33", "::ffff:10.0.0.0/104", "127.1", "0x7f000001", "b\u{fc}cher.example"]),
            vec![
                "berth.toml:4:1: plugins.a.grants.http: \"10.1.2.3/8\" has bits beyond its prefix; the block is \"10.0.0.0/8\"",
                "berth.toml:5:1: plugins.a.grants.http: \"33\" is not the length of a prefix; it is a number from 0 to 32",
                "berth.toml:6:1: plugins.a.grants.http: \"::ffff:10.0.0.0\" is an IPv4 address in IPv6; write the IPv4 block",
                "berth.toml:7:1: plugins.a.grants.http: \"127.1\" is not an IPv4 address; write its four numbers, as in \"10.0.0.1\"",
                "berth.toml:8:1: plugins.a.grants.http: \"0x7f000001\" is not an IPv4 address; write its four numbers, as in \"10.0.0.1\"",
                "berth.toml:9:1: plugins.a.grants.http: \"b\u{fc}cher.example\" is not in ASCII; write the name's \"xn--\" form",
            ],
        ),
        (
            "[plugins.a]\ncomponent = \"a\"\ngrants = { folders = \"data\" }\n".into(),
            vec!["berth.toml:3:22: plugins.a.grants.folders: must be a table, not a string"],
        ),
        (
            "[data]\ndir = \"var/b\"\n[plugins.a]\ncomponent = \"a\"\n[plugins.a.grants.folders]\n\"/a\" = \"var\"\n\"/b\" = \"var/b/cache\"\n\"/c\" = \"other/../var/b\"\n\"/d\" = \"var/bb\"\n".into(),
            vec![
                "berth.toml:6:1: plugins.a.grants.folders./a: the folder holds berth's own data folder, var/b, or is within it: its keys and machine code are no plugin's; grant another one",
                "berth.toml:7:1: plugins.a.grants.folders./b: the folder holds berth's own data folder, var/b, or is within it: its keys and machine code are no plugin's; grant another one",
                "berth.toml:8:1: plugins.a.grants.folders./c: the folder holds berth's own data folder, var/b, or is within it: its keys and machine code are no plugin's; grant another one",
            ],
        ),
        (
            "[plugins.a]\ncomponent = \"a\"\n[plugins.a.grants.folders]\ndata = \"d\"\n\"/a/../b\" = \"d\"\n\"/c\" = true\n\"/e\" = \"\"\n\"/f\" = { write = true }\n\"/g\" = { path = \"g\", wirte = true }\n".into(),
            vec![
                "berth.toml:4:1: plugins.a.grants.folders.data: \"data\" is not a folder's path for the plugin; it begins with \"/\" and has no \".\", no \"..\" and no \"/\" at its end, as in \"/data\"",
                "berth.toml:5:1: plugins.a.grants.folders./a/../b: \"/a/../b\" is not a folder's path for the plugin; it begins with \"/\" and has no \".\", no \"..\" and no \"/\" at its end, as in \"/data\"",
                "berth.toml:6:8: plugins.a.grants.folders./c: must be the folder's path on this machine, or { path = \"…\", write = true }",
                "berth.toml:7:8: plugins.a.grants.folders./e: must not be empty",
                "berth.toml:8:8: plugins.a.grants.folders./f.path: is missing; add the folder's path on this machine",
                "berth.toml:9:22: plugins.a.grants.folders./g.wirte: there is no such key; did you mean \"write\"?",
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
        (
            "[plugins.a]\ncomponent = \"a\"\nlog = \"verbose\"\n".into(),
            vec![
                "berth.toml:3:7: plugins.a.log: \"verbose\" is not a level; there is \"error\", \"warn\", \"info\", \"debug\", \"trace\" and \"off\"",
            ],
        ),
        (
            "[plugins.a]\ncomponent = \"a\"\nlog = \"inf\"\n".into(),
            vec!["berth.toml:3:7: plugins.a.log: \"inf\" is not a level; did you mean \"info\"?"],
        ),
        (
            "[plugins.a]\ncomponent = \"a\"\nlog = true\n".into(),
            vec!["berth.toml:3:7: plugins.a.log: must be a string, not a boolean"],
        ),
        (
            "[telemetry]\notlp = \"127.0.0.1:4318\"\n".into(),
            vec![
                "berth.toml:2:8: telemetry.otlp: \"127.0.0.1:4318\" is not a URL, as in \"http://127.0.0.1:4318\", nor \"off\"",
            ],
        ),
        (
            "[telemetry]\notlp = \"https://otel.example\"\n".into(),
            vec![
                "berth.toml:2:8: telemetry.otlp: \"https://otel.example\": TLS to a collector isn't available; run a collector near this host and name it with http://",
            ],
        ),
        (
            "[telemetry]\notlp = \"http://me:secret@otel.example\"\n".into(),
            vec![
                "berth.toml:2:8: telemetry.otlp: has a name or a password in it; put secrets into the environment variable OTEL_EXPORTER_OTLP_HEADERS",
            ],
        ),
        (
            "[telemetry]\notlp = \"http://otel.example?key=1\"\nsample = \"5\"\nservice = \"x\"\n".into(),
            vec![
                "berth.toml:2:8: telemetry.otlp: has a query; the base URL has none",
                "berth.toml:3:10: telemetry.sample: \"5\" is not a percentage from \"0%\" to \"100%\", as in \"5%\"",
                "berth.toml:4:1: telemetry.service: there is no such key; known here: otlp, service_name, sample",
            ],
        ),
        (
            "[telemetry]\nsample = \"101%\"\nservice_name = \"\"\n".into(),
            vec![
                "berth.toml:2:10: telemetry.sample: \"101%\" is not a percentage from \"0%\" to \"100%\", as in \"5%\"",
                "berth.toml:3:16: telemetry.service_name: must not be empty",
            ],
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
            "[http]\nlisten = \"127.0.0.1:8081\"\n[admin]\nlisten = \"8081\"\n".into(),
            vec!["berth.toml:4:10: admin.listen: \"8081\" is not an address with a port, as in \"127.0.0.1:8080\" or \"[::1]:8080\", nor \"off\""],
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

#[test]
fn hosts_that_a_plugin_may_call_are_kept_as_written() {
    let text = r#"
[plugins.a]
component = "a.wasm"
grants = { log = true, http = ["api.example.com", "*.example.com", "api.internal:8443", "10.0.0.0/8", "127.0.0.1:9000", "localhost:9000", "https://only-tls.example", "[::1]:80", "*"] }
"#;
    let spec = with_env(text, &[]).unwrap();
    let hosts: Vec<String> = spec.plugins[0]
        .grants
        .http()
        .entries()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        hosts,
        [
            "api.example.com",
            "*.example.com",
            "api.internal:8443",
            "10.0.0.0/8",
            "127.0.0.1:9000",
            "localhost:9000",
            "https://only-tls.example",
            "[::1]:80",
            "*"
        ]
    );
    assert!(with_env(GOOD, &[]).unwrap().plugins[0].grants.http().is_empty());
}

#[test]
fn folders_are_relative_to_the_manifest_and_read_only_unless_said() {
    let text = r#"
[plugins.a]
component = "a.wasm"
grants = { folders = { "/data" = "data", "/cache" = { path = "/var/cache/a", write = true }, "/plain" = { path = "plain" } } }
"#;
    let spec = parse(Path::new("/etc/berth/berth.toml"), text, &Environment::empty()).unwrap();
    let folders: Vec<(&str, &str, bool)> = spec.plugins[0]
        .grants
        .folders()
        .iter()
        .map(|f| (f.guest(), f.host().to_str().unwrap(), f.may_write()))
        .collect();
    assert_eq!(
        folders,
        [
            ("/cache", "/var/cache/a", true),
            ("/data", "/etc/berth/data", false),
            ("/plain", "/etc/berth/plain", false)
        ]
    );
}

#[test]
fn database_is_private_unless_there_is_an_address() {
    let spec = with_env("", &[]).unwrap();
    assert_eq!(spec.postgres, PostgresSpec::default());
    assert_eq!(spec.data, Path::new(".berth"));
    let text =
        "[postgres]\nurl = \"postgres://ada@db.test/app\"\npassword_file = \"secret\"\nconnections = 7\n";
    let spec = parse(Path::new("/etc/berth/berth.toml"), text, &Environment::empty()).unwrap();
    assert_eq!(spec.postgres.password_file, Some("/etc/berth/secret".into()));
    assert_eq!(spec.postgres.connections, 7);
    let from_env = with_env(
        text,
        &[("BERTH_POSTGRES_URL", "postgres://ada:hunter2@db.test/app")],
    )
    .unwrap();
    let url = from_env.postgres.url.unwrap();
    assert_eq!(url.expose_text(), Some("postgres://ada:hunter2@db.test/app"));
}

#[test]
fn password_in_the_manifest_is_a_fault_that_does_not_repeat_it() {
    let secret = "[postgres]\nurl = \"postgres://ada:hunter2@db.test/app\"\n";
    let has_password = "berth.toml:2:7: postgres.url: has a password in it, which is no place for secrets; put the password alone into a file and name it in `password_file`, or the whole address into the environment variable BERTH_POSTGRES_URL";
    assert_eq!(faults(secret), [has_password]);
    // Whatever the environment says: it is in the file all the same.
    let env = [("BERTH_POSTGRES_URL", "postgres://db.test/app")];
    assert_eq!(with_env(secret, &env).unwrap_err().len(), 1);
    for (text, wanted) in [
        (
            "[postgres]\nurl = \"postgres://ada@db.test/app?sslmode=foo\"\n",
            "berth.toml:2:7: postgres.url: unknown value \"foo\" for sslmode; it is like postgres://user@host:5432/database?sslmode=verify-full",
        ),
        (
            "[postgres]\nurl = \"postgres://ada@db.test/app?sslmod=require\"\n",
            "berth.toml:2:7: postgres.url: there is no parameter \"sslmod\"; it is like postgres://user@host:5432/database?sslmode=verify-full",
        ),
        (
            "[postgres]\nurl = \"hunter2\"\n",
            "berth.toml:2:7: postgres.url: is no address of a Postgres server, as in \"postgres://user@host:5432/database?sslmode=verify-full\"",
        ),
        (
            "[postgres]\npassword_file = \"secret\"\n",
            "berth.toml:2:17: postgres.password_file: means nothing without `url`; add it, or leave this out",
        ),
    ] {
        assert_eq!(faults(text), [wanted]);
    }
}

#[test]
fn tokens_and_passwords_have_the_defaults_of_the_readme() {
    let spec = with_env("", &[]).unwrap();
    assert_eq!(spec.tokens.algorithm, crate::tokens::TokenAlgorithm::EdDsa);
    let day = Duration::from_secs(86_400);
    assert_eq!(
        (spec.sessions.access_life, spec.sessions.refresh_life),
        (day, 30 * day)
    );
    assert_eq!(spec.passwords.queue, 64);
    assert!(spec.passwords.concurrency >= 1);
    let text = "[tokens]\naccess_life = \"15m\"\nrefresh_life = \"400days\"\nalgorithm = \"HS256\"\n[passwords]\nconcurrency = 3\nqueue = 0";
    let spec = with_env(text, &[]).unwrap();
    assert_eq!(spec.tokens.algorithm, crate::tokens::TokenAlgorithm::Hs256);
    assert_eq!(spec.sessions.access_life, Duration::from_secs(900));
    assert_eq!(spec.sessions.refresh_life, 400 * day);
    assert_eq!((spec.passwords.concurrency, spec.passwords.queue), (3, 0));
}
