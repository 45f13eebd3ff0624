use super::*;

/// Everything that has a meaning somewhere, and a blank.
const ODD: &str = "/srv/a b%h $HOME\"q\\z'`<&>;#";

fn order(supervisor: Supervisor, scope: Scope, dir: &str) -> Order {
    Order {
        service: Service {
            supervisor,
            scope,
            path: place(supervisor, scope, "/home/op", "/home/op/.config").unwrap_or_default(),
            uid: 1000,
            name: "consensus-node".into(),
        },
        install_dir: format!("{dir}/runtime"),
        state_dir: format!("{dir}/node"),
        registry_dir: dir.to_string(),
        user: ("op".into(), 1000),
        arguments: vec!["--allow-private-targets".into()],
        settings: vec![("CONSENSUS_SERVER_URL".into(), "https://server.example".into())],
    }
}

/// The file of the supervisor.
fn file(order: &Order) -> String {
    let of_service = |step: Step| match step {
        Step::Write { path, text, .. } if path == order.service.path => Some(text),
        _ => None,
    };
    install(order).unwrap().into_iter().find_map(of_service).unwrap()
}

fn value<'a>(unit: &'a str, key: &str) -> Vec<&'a str> {
    unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('=')).collect()
}

const BOTH: [Scope; 2] = [Scope::Machine, Scope::User];

#[test]
fn a_unit_says_where_everything_is_and_keeps_the_rest_of_its_template() {
    let unit = file(&order(Supervisor::Systemd, Scope::Machine, "/var/lib/node"));
    assert!(unit.starts_with("# Written by `consensus-node service install`"), "{unit}");
    let run = "/bin/sh \"/var/lib/node/runtime/run-node.sh\" run \"--allow-private-targets\"";
    assert_eq!(value(&unit, "ExecStart"), [run]);
    assert_eq!(value(&unit, "User"), ["op"]);
    assert_eq!(value(&unit, "EnvironmentFile"), ["-/etc/consensus-node/node.env"]);
    assert_eq!(
        value(&unit, "ReadWritePaths"),
        ["\"/var/lib/node\" \"/var/lib/node/node\" \"/var/lib/node/runtime\""]
    );
    assert_eq!(value(&unit, "ProtectHome"), ["yes"]);
    let places = [
        "\"CONSENSUS_NODE_INSTALL_DIR=/var/lib/node/runtime\"",
        "\"CONSENSUS_STATE_DIR=/var/lib/node/node\"",
        "\"CONSENSUS_MACHINE_REGISTRY_DIR=/var/lib/node\"",
    ];
    assert_eq!(value(&unit, "Environment"), places);
    for (key, wanted) in [
        ("Restart", "always"),
        ("StartLimitIntervalSec", "0"),
        ("KillMode", "mixed"),
        ("TimeoutStopSec", "60"),
        ("ProtectSystem", "strict"),
        ("WantedBy", "multi-user.target"),
    ] {
        assert_eq!(value(&unit, key), [wanted]);
    }
    assert!(!unit.contains("/var/lib/consensus-node") && !unit.contains("StateDirectory"), "{unit}");
}

#[test]
fn a_unit_of_a_user_has_the_settings_beside_the_releases_and_no_user() {
    let unit = file(&order(Supervisor::Systemd, Scope::User, "/home/op/.consensus"));
    assert_eq!(value(&unit, "EnvironmentFile"), ["-/home/op/.consensus/runtime/node.env"]);
    let unit = file(&order(Supervisor::Systemd, Scope::User, r"/home/op/a [b]*?\c % d"));
    assert_eq!(value(&unit, "EnvironmentFile"), [r"-/home/op/a \[b]\*\?\\c %% d/runtime/node.env"]);
    assert_eq!(value(&unit, "WantedBy"), ["default.target"]);
    assert!(value(&unit, "User").is_empty() && !unit.contains("%h"), "{unit}");
}

#[test]
fn a_unit_of_the_machine_leaves_a_home_that_it_has_to_write_visible() {
    let unit = file(&order(Supervisor::Systemd, Scope::Machine, "/home/op/.consensus"));
    assert_eq!(value(&unit, "ProtectHome"), ["read-only"]);
}

#[test]
fn odd_paths_are_escaped_for_a_unit_and_read_back() {
    for scope in BOTH {
        let order = order(Supervisor::Systemd, scope, ODD);
        let unit = file(&order);
        let command = "/bin/sh \"/srv/a b%%h $$HOME\\\"q\\\\z'`<&>;#/runtime/run-node.sh\" run \"--allow-private-targets\"";
        assert_eq!(value(&unit, "ExecStart"), [command]);
        let first = value(&unit, "Environment")[0];
        assert_eq!(first, "\"CONSENSUS_NODE_INSTALL_DIR=/srv/a b%%h $HOME\\\"q\\\\z'`<&>;#/runtime\"");
        assert_eq!(install_dir_of(Supervisor::Systemd, &unit), Some(order.install_dir));
    }
    assert_eq!(install_dir_of(Supervisor::Systemd, "Environment=\"CONSENSUS_NODE_INSTALL_DIR=\\\""), None);
}

#[test]
fn odd_paths_are_escaped_for_a_property_list_and_read_back() {
    for scope in BOTH {
        let order = order(Supervisor::Launchd, scope, ODD);
        let list = file(&order);
        assert!(
            list.contains("<string>/srv/a b%h $HOME\"q\\z'`&lt;&amp;&gt;;#/runtime/run-node.sh</string>"),
            "{list}"
        );
        assert!(
            list.contains("<string>run</string>\n        <string>--allow-private-targets</string>"),
            "{list}"
        );
        assert!(!list.contains('@') && !list.contains("<!-- "), "{list}");
        assert_eq!(list.contains("<key>UserName</key>\n    <string>op</string>"), scope == Scope::Machine);
        assert_eq!(install_dir_of(Supervisor::Launchd, &list), Some(order.install_dir));
    }
    // What is put in is not filled in again.
    let order = order(Supervisor::Launchd, Scope::User, "/srv/@ENV_FILE@");
    assert_eq!(install_dir_of(Supervisor::Launchd, &file(&order)), Some(order.install_dir));
}

#[test]
fn settings_are_for_their_reader_alone_and_escaped_for_a_shell_and_for_systemd() {
    for (supervisor, scope, path, owner) in [
        (Supervisor::Systemd, Scope::Machine, "/etc/consensus-node/node.env", None),
        (Supervisor::Systemd, Scope::User, "/x/runtime/node.env", None),
        (Supervisor::Launchd, Scope::Machine, "/etc/consensus-node/node.env", Some(1000)),
        (Supervisor::Launchd, Scope::User, "/x/runtime/node.env", None),
        (Supervisor::Pm2, Scope::User, "/x/runtime/node.env", None),
    ] {
        let mut order = order(supervisor, scope, "/x");
        order.settings = vec![("CONSENSUS_NODE_UPDATE_COMMAND".into(), "a \"b\" $c `d` \\e 'f' %g".into())];
        let steps = install(&order).unwrap();
        let Step::Write { path: written, text, mode: 0o600, owner: its, shown: false } = &steps[0] else {
            panic!("{steps:?}")
        };
        assert_eq!((written.as_str(), *its), (path, owner));
        let last = text.lines().last().unwrap();
        assert_eq!(last, "CONSENSUS_NODE_UPDATE_COMMAND=\"a \\\"b\\\" \\$c \\`d\\` \\\\e 'f' %g\"");
        order.settings.clear();
        assert!(
            !install(&order)
                .unwrap()
                .iter()
                .any(|step| matches!(step, Step::Write { path, .. } if path == written))
        );
    }
}

#[test]
fn what_would_make_two_lines_of_one_is_refused() {
    type Spoil = fn(&mut Order);
    let spoils: [Spoil; 5] = [
        |order| order.install_dir.push_str("\nUser=root"),
        |order| order.state_dir.push('\r'),
        |order| order.registry_dir.push('\u{2028}'),
        |order| order.settings[0].1.push_str("\"\nLD_PRELOAD=\"x"),
        |order| order.user.0.push('\0'),
    ];
    for (supervisor, scope) in [(Supervisor::Systemd, Scope::Machine), (Supervisor::Pm2, Scope::User)] {
        for spoil in spoils {
            let mut order = order(supervisor, scope, "/x");
            spoil(&mut order);
            let error = install(&order).unwrap_err().to_string();
            assert!(error.contains("line end") && !error.chars().any(char::is_control), "{error}");
        }
    }
}

fn commands(steps: &[Step]) -> Vec<String> {
    let command = |step: &Step| match step {
        Step::Run(command) | Step::Try(command) => Some(command.to_string()),
        Step::Remove { path } => Some(format!("rm {path}")),
        Step::Write { .. } => None,
    };
    steps.iter().filter_map(command).collect()
}

#[test]
fn each_supervisor_is_told_what_to_do() {
    let of = |supervisor, scope| {
        let order = order(supervisor, scope, "/x y");
        (commands(&install(&order).unwrap()), commands(&uninstall(&order.service)))
    };
    let (up, down) = of(Supervisor::Systemd, Scope::Machine);
    assert_eq!(up, ["systemctl daemon-reload", "systemctl enable --now consensus-node.service"]);
    let unit = "rm /etc/systemd/system/consensus-node.service";
    assert_eq!(down, ["systemctl disable --now consensus-node.service", unit, "systemctl daemon-reload"]);
    let (up, _) = of(Supervisor::Systemd, Scope::User);
    assert_eq!(up[1..], ["systemctl --user enable --now consensus-node.service", "loginctl enable-linger"]);
    let (up, down) = of(Supervisor::Launchd, Scope::User);
    let list = "/home/op/Library/LaunchAgents/network.consensus.node.plist";
    assert_eq!(
        up,
        [
            "launchctl enable gui/1000/network.consensus.node".to_string(),
            format!("launchctl bootstrap gui/1000 {list}")
        ]
    );
    assert_eq!(down, ["launchctl bootout gui/1000/network.consensus.node".to_string(), format!("rm {list}")]);
    let (up, down) = of(Supervisor::Pm2, Scope::User);
    assert_eq!(
        up,
        ["CONSENSUS_NODE_INSTALL_DIR='/x y/runtime' CONSENSUS_STATE_DIR='/x y/node' \
          CONSENSUS_MACHINE_REGISTRY_DIR='/x y' CONSENSUS_PM2_NAME=consensus-node /bin/sh \
          '/x y/runtime/current/scripts/start-pm2.sh' run --allow-private-targets"]
    );
    assert_eq!(down, ["pm2 delete consensus-node", "pm2 save --force"]);
}

#[test]
fn what_systemd_answers_is_read() {
    let answer = "MainPID=123\nNRestarts=2\nLoadState=loaded\nActiveState=active\nSubState=running\n\
                  ActiveEnterTimestamp=Thu 2026-11-26 03:40:35 UTC\nUnitFileState=enabled\n";
    let report = Report::parse(Supervisor::Systemd, answer, NAME).unwrap();
    assert_eq!((report.runs, report.state.as_str()), (true, "active (running)"));
    assert_eq!(report.since.as_deref(), Some("Thu 2026-11-26 03:40:35 UTC"));
    assert_eq!((report.process, report.restarts), (Some(123), Some(2)));
    let answer =
        answer.replace("active\n", "activating\n").replace("running", "auto-restart").replace("123", "0");
    let report = Report::parse(Supervisor::Systemd, &answer.replace("enabled", "disabled"), NAME).unwrap();
    assert_eq!(report.state, "activating (auto-restart), not started with the machine");
    assert_eq!((report.runs, report.since, report.process), (false, None, None));
    let missing = "LoadState=not-found\nActiveState=inactive\n";
    assert_eq!(Report::parse(Supervisor::Systemd, missing, NAME), None);
    assert_eq!(Report::parse(Supervisor::Systemd, "\x1b[2J", NAME), None);
}

#[test]
fn what_launchd_answers_is_read() {
    let answer = "gui/501/network.consensus.node = {\n\tactive count = 1\n\tstate = running\n\n\truns = 3\n\tpid = 77\n\
                  \tspawn type = daemon\n\t\tstate = active\n}\n";
    let report = Report::parse(Supervisor::Launchd, answer, NAME).unwrap();
    assert_eq!((report.runs, report.process, report.restarts), (true, Some(77), Some(2)));
    let report =
        Report::parse(Supervisor::Launchd, &answer.replace("running", "spawn scheduled"), NAME).unwrap();
    assert_eq!((report.runs, report.state.as_str()), (false, "spawn scheduled"));
    assert_eq!(Report::parse(Supervisor::Launchd, "Could not find service", NAME), None);
}

#[test]
fn what_pm2_answers_is_read_whatever_it_says_before() {
    let answer = "\n>>>> In-memory PM2 is out-of-date\n[{\"name\":\"other\"},{\"name\":\"node\",\"pid\":9,\"pm2_env\":{\
                  \"status\":\"online\",\"pm_uptime\":1700000000000,\"restart_time\":1,\
                  \"CONSENSUS_NODE_INSTALL_DIR\":\"/x\"}}]\n";
    let report = Report::parse(Supervisor::Pm2, answer, "node").unwrap();
    assert_eq!((report.runs, report.process, report.restarts), (true, Some(9), Some(1)));
    assert_eq!(report.since.as_deref(), Some("2023-11-14T22:13:20.000Z"));
    assert_eq!(report.install_dir.as_deref(), Some("/x"));
    assert_eq!(Report::parse(Supervisor::Pm2, answer, "another"), None);
    // The saved list: over several lines, and flat.
    let saved =
        "[\n  {\n    \"name\": \"node\",\n    \"env\": {\"CONSENSUS_NODE_INSTALL_DIR\": \"/x\"}\n  }\n]";
    let apps = pm2_apps(saved).unwrap();
    assert_eq!((apps[0].0.as_str(), apps[0].1.install_dir.as_deref()), ("node", Some("/x")));
    for junk in ["", "[]", "{}", "[1,null,{}]", "[{\"name\":1,\"pm_uptime\":18446744073709551615}]"] {
        assert!(pm2_apps(junk).is_none_or(|apps| apps.is_empty()), "{junk}");
    }
    let late =
        "[{\"name\":\"n\",\"pid\":99999999999,\"status\":\"online\",\"pm_uptime\":18446744073709551615}]";
    assert_eq!(pm2_apps(late).unwrap()[0].1.process, None);
}
