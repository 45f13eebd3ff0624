//! What a node measures of its machine, by hand and while it serves.

use std::time::{Duration, Instant};

use consensus_core::peer::orchestrator::Input;
use consensus_testbed::binaries::Shell;
use consensus_testbed::network::NODE_ID;
use consensus_testbed::orchestrator::Record;
use consensus_testbed::process::NodeProcess;
use serde_json::{Value, json};

use crate::lab::{CONTROL, LONG, Lab, stop, with_both_shells};

with_both_shells! {
    the_battery_by_hand_needs_no_network_and_judges_by_every_threshold
    a_battery_that_is_stopped_says_so
    a_spot_check_holds_up_neither_requests_nor_other_answers
}

fn the_battery_by_hand_needs_no_network_and_judges_by_every_threshold(shell: Shell) {
    let lab = Lab::new(shell);
    let command =
        lab.network.home.command(&lab.program, ["bench", "--quick", "--json", "--log-level", "warn"]);
    let exit = NodeProcess::run(command, LONG).unwrap();
    assert_eq!(exit.code, Some(0), "{}", exit.stderr());
    let bench: Value = serde_json::from_str(&exit.stdout).unwrap();
    assert_eq!((&bench["shell"], &bench["errors"]), (&json!(shell.name()), &json!({})), "{bench}");
    for action in ["benchmark_system", "benchmark_event_loop", "benchmark_composite", "benchmark_sustained"] {
        assert!(bench["results"][action].is_object(), "{action}");
    }
    let thresholds = bench["thresholds"].as_array().unwrap();
    let met = |name: &str| thresholds.iter().find(|judged| judged["name"] == name).unwrap()["met"].clone();
    for name in ["memory", "event loop", "throttle ratio", "processor share", "slowest window"] {
        assert!(met(name).is_boolean(), "{name}: {bench}");
    }
    let all = thresholds.iter().all(|judged| judged["met"] != false);
    assert_eq!(bench["admissible"], all, "{bench}");
}

fn a_battery_that_is_stopped_says_so(shell: Shell) {
    let lab = Lab::new(shell);
    let node = NodeProcess::spawn(lab.network.home.command(&lab.program, ["bench"])).unwrap();
    let begun = node.wait_for(0, LONG, |line| line.event() == "progress");
    assert!(begun.is_some());
    node.terminate().unwrap();
    let exit = node.wait(LONG).unwrap();
    assert_eq!(exit.code, Some(70));
    assert!(exit.stderr().contains("stopped before everything was measured"), "{}", exit.stderr());
}

fn a_spot_check_holds_up_neither_requests_nor_other_answers(shell: Shell) {
    let lab = Lab::new(shell);
    let node = lab.start(&CONTROL);
    lab.ready(&node, 1);
    let journal = lab.network.orchestrator.journal();
    let evaluate = |action: &str, params: Option<Value>| {
        let action = action.to_owned();
        assert!(lab.network.orchestrator.tell(NODE_ID, Input::Evaluate { action, params }));
    };
    let answered = |wanted: &str, wait: Duration| {
        journal.wait(0, wait, |record| match record {
            Record::Evaluated { action, ok, .. } if action == wanted => Some(*ok),
            _ => None,
        })
    };
    evaluate("benchmark_sustained", Some(json!({ "duration_ms": 5_000, "window_ms": 1_000 })));
    evaluate("integrity", None);
    let (integrity_at, ok) = answered("integrity", LONG).unwrap();
    assert!(ok);
    let (mut served, mut slowest) = (0, Duration::ZERO);
    while answered("benchmark_sustained", Duration::ZERO).is_none() {
        let asked = Instant::now();
        lab.assert_serves();
        slowest = slowest.max(asked.elapsed());
        served += 1;
    }
    println!("{}: the slowest of {served} requests took {} ms", shell.name(), slowest.as_millis());
    let (sustained_at, ok) = answered("benchmark_sustained", LONG).unwrap();
    assert!(ok && integrity_at < sustained_at);
    assert!(served > 1, "{served} requests were answered while the node was measured");
    stop(node);
}
