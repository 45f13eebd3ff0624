use alloc::vec;

use super::*;
use crate::io::{FetchError, FetchErrorKind, LinkEnd, OpenStage, Response};
use crate::release::manifest::Manifest;
use crate::tunnel::handshake::HandshakeError;

const NOW: u64 = 784_111_777;

fn answer(status: u16, body: Value) -> Option<Answer> {
    let headers = vec![("Date".to_string(), "Sun, 06 Nov 1994 08:49:37 GMT".to_string())];
    let body = body.to_string().into_bytes();
    Some((Ok(Response { status, reason: "R".to_string(), headers, body }), NOW))
}

fn manifest() -> Manifest {
    Manifest::of_this_release("1.2.3", "abc", "linux-x64")
}

/// A node with nothing wrong.
fn well() -> Findings {
    let files = Files { dir: "/s".to_string(), mode: Some(0o700), is_writable: true, ..Files::default() };
    Findings {
        program: "consensus-node".to_string(),
        unix_seconds: NOW,
        settings: Settings::default(),
        files: Some(files),
        identity: Identity::Whole,
        registered: Registered::As("b1c604f617c0".to_string()),
        route: Some(Route {
            target: "network.example:443".to_string(),
            proxy: None,
            is_literal: false,
            is_tls: true,
            resolved: Some(Ok(Resolved { v4: 1, v6: 1 })),
            connected: Some(Ok("connected".to_string())),
            secured: Some(Ok(None)),
            upgraded: Some(Ok(())),
            shaken: Some(Shaken::Done(NOW)),
        }),
        answers: Answers {
            status: answer(200, json!({ "status": "online" })),
            latest: answer(200, serde_json::to_value(manifest()).unwrap()),
            unsigned: None,
        },
        running: Ok(manifest()),
        disk: vec![Space { path: "/r".to_string(), for_releases: true, free: 1 << 40 }],
        memory: Some(Memory { total: 1 << 32, free: 1 << 31 }),
        node: Running {
            lock: Lock::Held(Some(7)),
            api: Api::Node { node_id: Some("b1c604f617c0".to_string()), tunnel: "connected".to_string() },
            listen: "127.0.0.1:9090".to_string(),
        },
        supervision: Supervision::By(vec![kept(Some(true))]),
    }
}

fn kept(runs: Option<bool>) -> Kept {
    Kept {
        text: "systemd".to_string(),
        runs,
        state: "active".to_string(),
        start: "systemctl start".to_string(),
    }
}

fn end(stage: OpenStage) -> LinkEnd {
    LinkEnd::Unopened { stage, detail: "why".to_string() }
}

/// The lines where `change` is what is wrong.
fn lines(change: impl FnOnce(&mut Findings)) -> Vec<Line> {
    let mut found = well();
    change(&mut found);
    examine(&found)
}

#[track_caller]
fn one(check: Check, verdict: Verdict, words: &str, change: impl FnOnce(&mut Findings)) {
    let lines = lines(change);
    let others: Vec<&Line> =
        lines.iter().filter(|line| line.check != check && line.verdict != Verdict::Ok).collect();
    assert!(others.is_empty(), "{others:?}");
    let line = lines.iter().find(|line| line.check == check).unwrap();
    assert_eq!(line.verdict, verdict, "{line:?}");
    assert!(line.text.contains(words) || line.fix.contains(words), "{line:?}");
    assert!(verdict == Verdict::Ok || verdict == Verdict::Skipped || !line.fix.is_empty(), "{line:?}");
    assert_eq!(exit_code(&lines), u8::from(verdict == Verdict::Failed));
}

#[test]
fn a_well_node_has_one_line_for_each_check_and_all_are_ok() {
    let lines = lines(|_| ());
    assert!(lines.iter().all(|line| line.verdict == Verdict::Ok && line.fix.is_empty()), "{lines:?}");
    let checks: Vec<Check> = lines.iter().map(|line| line.check).collect();
    let mut sorted = checks.clone();
    sorted.sort();
    sorted.dedup();
    assert_eq!((checks.len(), &checks), (15, &sorted));
    assert_eq!(exit_code(&lines), 0);
}

#[test]
fn too_little_room_or_memory_is_told() {
    let free = |free: u64, for_releases: bool| {
        move |found: &mut Findings| {
            found.disk = vec![Space { path: "/r".to_string(), for_releases, free }];
        }
    };
    one(Check::Disk, Verdict::Failed, "a release needs 96 MiB", free(95 << 20, true));
    one(Check::Disk, Verdict::Ok, "", free(96 << 20, true));
    one(Check::Disk, Verdict::Failed, "the state needs", free(15 << 20, false));
    one(Check::Disk, Verdict::Ok, "", free(17 << 20, false));
    one(Check::Disk, Verdict::Skipped, "", |found| found.disk.clear());
    // The network says how large a release is.
    let sized = |bytes: u64, free: u64| {
        move |found: &mut Findings| {
            let mut required = manifest();
            required.set_tarball_size(bytes);
            found.answers.latest = answer(200, serde_json::to_value(required).unwrap());
            found.disk = vec![Space { path: "/r".to_string(), for_releases: true, free }];
        }
    };
    one(Check::Disk, Verdict::Ok, "", sized(10 << 20, 40 << 20));
    one(Check::Disk, Verdict::Failed, "40 MiB", sized(10 << 20, 39 << 20));
    one(Check::Disk, Verdict::Failed, "", sized(u64::MAX / 2, 1 << 40));
    let memory = |total: u64, free: u64| {
        move |found: &mut Findings| found.memory = Some(Memory { total: total << 20, free: free << 20 })
    };
    one(Check::Memory, Verdict::Failed, "512 MiB", memory(511, 500));
    one(Check::Memory, Verdict::Warning, "63 MiB", memory(512, 63));
    one(Check::Memory, Verdict::Ok, "", memory(512, 64));
}

#[test]
fn what_comes_after_a_step_that_failed_is_skipped_because_of_it() {
    type Fail = fn(&mut Route);
    let steps: [(Check, Fail); 4] = [
        (Check::Dns, |route| route.resolved = Some(Err(end(OpenStage::Resolve)))),
        (Check::Tcp, |route| route.connected = Some(Err(end(OpenStage::Connect)))),
        (Check::Tls, |route| {
            route.secured = Some(Err(Insecure { problem: Certificate::Other, detail: "why".to_string() }));
        }),
        (Check::WebSocket, |route| route.upgraded = Some(Err(LinkEnd::NotUpgraded { status: 404 }))),
    ];
    for (at, (check, fail)) in steps.into_iter().enumerate() {
        let lines = lines(|found| {
            let route = found.route.as_mut().unwrap();
            if at < 1 {
                route.connected = None;
            }
            if at < 2 {
                route.secured = None;
            }
            if at < 3 {
                route.upgraded = None;
            }
            route.shaken = None;
            fail(route);
            found.answers = Answers::default();
        });
        for line in lines.iter().filter(|line| (Check::Dns..=Check::Release).contains(&line.check)) {
            if line.check < check {
                assert_eq!(line.verdict, Verdict::Ok, "{line:?}");
            } else if line.check == check {
                assert_eq!(line.verdict, Verdict::Failed, "{line:?}");
                assert!(!line.fix.is_empty());
            } else {
                let because = format!("because of {}", check.name());
                assert_eq!((line.verdict, &line.text), (Verdict::Skipped, &because), "{line:?}");
            }
        }
    }
}

#[test]
fn a_node_that_was_moved_is_warned_of_and_another_one_fails() {
    let conflict = |node: &str| {
        let conflict = crate::state::MachineConflict::StateDir {
            node: Some(node.to_string()),
            registered: "/old".to_string(),
            other: Some("b1c604f617c0".to_string()),
            requested: "/s".to_string(),
        };
        move |found: &mut Findings| {
            let files = found.files.as_mut().unwrap();
            files.conflict = Some(("/m/machine.json".to_string(), conflict));
        }
    };
    one(Check::Files, Verdict::Warning, "`state_dir` of /m/machine.json", conflict("b1c604f617c0"));
    one(Check::Files, Verdict::Warning, "where the same node", conflict("b1c604f617c0"));
    one(Check::Files, Verdict::Failed, "remove /m/machine.json", conflict("ffffffffffff"));
}

#[test]
fn what_is_missing_of_the_settings_is_said_where_to_give() {
    one(Check::Settings, Verdict::Failed, "a line of config.toml", |found| {
        found.settings.errors.push("missing: --server".to_string());
    });
}

#[test]
fn a_clock_is_judged_by_how_far_it_is_off_in_either_direction() {
    let off = |by: i64| {
        move |found: &mut Findings| {
            for (_, here) in [&mut found.answers.status, &mut found.answers.latest].into_iter().flatten() {
                *here = here.saturating_add_signed(by);
            }
        }
    };
    one(Check::Clock, Verdict::Ok, "30 s ahead", off(30));
    one(Check::Clock, Verdict::Warning, "31 s ahead", off(31));
    one(Check::Clock, Verdict::Warning, "120 s behind", off(-120));
    one(Check::Clock, Verdict::Failed, "121 s behind", off(-121));
    // Without a date, the handshake says what time it is.
    one(Check::Clock, Verdict::Failed, "600 s ahead", |found| {
        for (answer, _) in [&mut found.answers.status, &mut found.answers.latest].into_iter().flatten() {
            answer.as_mut().unwrap().headers.clear();
        }
        found.route.as_mut().unwrap().shaken = Some(Shaken::Done(NOW - 600));
    });
}

#[test]
fn an_http_interface_that_does_not_answer_is_told_once() {
    let error = || FetchError { kind: FetchErrorKind::Protocol, detail: "junk".to_string() };
    let lines = lines(|found| {
        found.answers = Answers { status: Some((Err(error()), NOW)), ..Answers::default() };
    });
    let with = |verdict: Verdict| -> Vec<Check> {
        lines.iter().filter(|line| line.verdict == verdict).map(|line| line.check).collect()
    };
    assert_eq!(with(Verdict::Failed), [Check::Registration]);
    assert_eq!(with(Verdict::Skipped), [Check::Release]);
}

#[test]
fn a_release_is_compared_and_its_signature_counts() {
    one(Check::Release, Verdict::Ok, "no certain release", |found| {
        found.answers.latest = answer(404, json!({}));
    });
    one(Check::Release, Verdict::Failed, "no manifest", |found| {
        found.answers.latest = answer(200, json!({}));
    });
    one(Check::Release, Verdict::Failed, "not signed", |found| {
        found.answers.unsigned = Some("it is not signed".to_string());
    });
    one(Check::Release, Verdict::Failed, "update --download", |found| {
        found.running = Ok(Manifest::of_this_release("1.2.2", "abc", "linux-x64"));
    });
}

#[test]
fn a_node_and_what_keeps_it_are_told_as_they_are() {
    let api =
        |tunnel: &str, node: &str| Api::Node { node_id: Some(node.to_string()), tunnel: tunnel.to_string() };
    let own = "b1c604f617c0";
    one(Check::Node, Verdict::Warning, "not connected", |found| found.node.api = api("connecting", own));
    one(Check::Node, Verdict::Ok, "not known", |found| found.node.api = Api::Silent);
    one(Check::Node, Verdict::Failed, "ffffffffffff", |found| {
        found.node.api = api("connected", "ffffffffffff");
    });
    one(Check::Node, Verdict::Failed, "no node answers", |found| found.node.api = Api::Other);
    one(Check::Node, Verdict::Warning, "keeps the tunnel", |found| {
        (found.node.api, found.node.lock) = (api("none", own), Lock::Free);
    });
    one(Check::Node, Verdict::Warning, "service install", |found| {
        (found.node.api, found.node.lock) = (Api::Silent, Lock::Free);
    });
    let by = |kept: Vec<Kept>| |found: &mut Findings| found.supervision = Supervision::By(kept);
    one(Check::Supervisor, Verdict::Warning, "service install", by(vec![]));
    one(Check::Supervisor, Verdict::Failed, "systemctl start", by(vec![kept(Some(false))]));
    one(Check::Supervisor, Verdict::Warning, "does not say", by(vec![kept(None)]));
    one(Check::Supervisor, Verdict::Failed, "uninstall", by(vec![kept(Some(true)), kept(Some(true))]));
}

#[test]
fn what_a_peer_says_stays_on_its_line_and_is_bounded() {
    let said = "a\x1b[31m\nb\u{202e}c".to_string() + &"é".repeat(5000);
    let lines = lines(|found| {
        found.settings.errors = vec![said.clone()];
        found.route.as_mut().unwrap().shaken = Some(Shaken::Refused(HandshakeError::Rejected {
            code: said.clone(),
            message: said.clone(),
            server_time: NOW,
        }));
        found.answers.status = answer(500, json!({ "error": said }));
        found.node.listen.clone_from(&said);
        found.node.api = Api::Other;
    });
    for line in &lines {
        let text = line.to_string();
        assert!(!text.contains('\x1b') && !text.contains('\u{202e}'), "{text}");
        assert!(text.lines().count() <= 2, "{text}");
        assert!(line.text.chars().count() <= MAX_TEXT + 1);
    }
}

#[test]
fn a_fix_is_on_a_line_of_its_own_and_null_where_there_is_none() {
    let line = Line::failed(Check::Tls, "text", "mend it");
    assert_eq!(line.to_string(), "failed   tls           text\n                       fix: mend it");
    assert_eq!(Line::ok(Check::Tls, "text").to_string(), "ok       tls           text");
    assert_eq!(Line::ok(Check::Tls, "text").to_value()["fix"], Value::Null);
}

#[test]
fn a_certificate_that_runs_out_soon_is_a_warning_with_its_day() {
    let mut found = well();
    found.route.as_mut().unwrap().secured = Some(Ok(Some(NOW + 86_400)));
    let lines = examine(&found);
    let line = lines.iter().find(|line| line.check == Check::Tls).unwrap();
    assert_eq!(line.verdict, Verdict::Warning);
    assert!(line.text.contains("runs out at ") && line.fix.contains("renewed"), "{line}");
    assert_eq!(exit_code(&lines), 0);
}

#[test]
fn files_that_are_made_good_by_themselves_are_a_warning_beside_others() {
    let mut found = well();
    let files = found.files.as_mut().unwrap();
    let path = "/s/config.json".to_string();
    files.seen.push(SeenFile { path, mode: 0o644, size: 1, is_secret: true });
    files.mended.push(("spent-tickets.json: damaged".into(), "restart it".into()));
    let line = examine(&found).swap_remove(1);
    assert_eq!(line.verdict, Verdict::Warning);
    for words in ["spent-tickets.json: damaged; /s/config.json: mode 0644", "restart it; chmod 0600"] {
        assert!(line.to_string().contains(words), "{line}");
    }
}
