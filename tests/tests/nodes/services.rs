//! Nodes made services: the command `service`, with a systemd that only writes down what it is told. What it would
//! start is started by hand here; a real PM2 is in the testbed's `pm2`.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use consensus_testbed::binaries::Shell;
use consensus_testbed::options::Options;
use consensus_testbed::process::{Exit, NodeProcess};

use crate::lab::{LONG, Lab, stop, with_both_shells};

with_both_shells! {
    what_the_unit_of_a_user_says_starts_a_node_with_its_settings
    a_unit_of_the_machine_is_well_formed_whatever_the_paths_are
    a_service_is_told_of_and_taken_away
    what_cannot_be_a_service_is_told_with_its_exit_code
    a_dry_run_changes_nothing_and_shows_no_value_of_a_setting
}

#[test]
fn the_script_for_a_control_process_starts_again_what_ends_with_75_and_passes_a_stop_on() {
    let world = World::new(Shell::Blocking, ODD);
    let program = world.dir.join("releases").join(RELEASE).join("bin/consensus-node");
    fs::remove_file(&program).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/run-control.sh");
    let start = |body: &str| {
        fs::write(&program, format!("#!/bin/sh\necho \"$*\" >>\"$HOME/starts\"\n{body}")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let mut command = world.lab.network.node(&script, ["--log", "two words"]);
        command.env("CONSENSUS_NODE_INSTALL_DIR", &world.dir);
        NodeProcess::spawn(command).unwrap()
    };
    let ended = start("[ $(wc -l <\"$HOME/starts\") -lt 3 ] && exit 75\nexit 7\n").wait(LONG).unwrap();
    assert_eq!(ended.code, Some(7), "{}", ended.stderr());
    let starts = fs::read_to_string(world.root.join("starts")).unwrap();
    assert_eq!(starts, "control --log two words\n".repeat(3));
    // A stop is passed on, and what ends with 75 then is not started again.
    let node = start("trap 'kill $!; exit 75' TERM\necho here >&2\nwhile :; do sleep 60 & wait $!; done\n");
    node.wait_for(0, LONG, |line| line.text == "here").unwrap();
    node.terminate().unwrap();
    assert_eq!(node.wait(LONG).unwrap().code, Some(75));
    assert_eq!(fs::read_to_string(world.root.join("starts")).unwrap().lines().count(), 4);
}

#[test]
fn the_list_of_a_pm2_that_does_not_run_is_left_as_it_is() {
    let world = World::new(Shell::Blocking, ODD);
    world.tool("pm2", "echo \"$1 $PM2_NODE_ARGUMENTS\" >>\"$HOME/calls\"\n");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/start-pm2.sh");
    let start = || {
        let mut command = world.lab.network.node(&script, ["run", "two words"]);
        let path = std::env::var("PATH").unwrap();
        command.env("PATH", format!("{}:{path}", world.bin.display()));
        command.env("CONSENSUS_NODE_INSTALL_DIR", &world.dir);
        let exit = NodeProcess::run(command, LONG).unwrap();
        let _ = fs::remove_file(world.root.join("calls.before"));
        let calls = world.calls();
        fs::rename(world.root.join("calls"), world.root.join("calls.before")).unwrap();
        (exit, calls)
    };
    let (exit, calls) = start();
    assert_ended(&exit, 0, &["pm2 startup"]);
    assert_eq!(calls, ["startOrRestart run", "two words", "save run", "two words"]);
    fs::create_dir(world.root.join(".pm2")).unwrap();
    fs::write(world.root.join(".pm2/dump.pm2"), "[{\"name\":\"other\"},{\"name\":\"consensus-node\"}]")
        .unwrap();
    let (exit, calls) = start();
    assert_ended(&exit, 0, &["left as it is"]);
    assert_eq!(calls, ["startOrRestart run", "two words"]);
    let exit = world.run(&["service", "uninstall"]);
    assert_ended(&exit, 70, &["pm2 resurrect"]);
    assert!(world.calls().is_empty());
    // One that runs: this process, say.
    fs::write(world.root.join(".pm2/pm2.pid"), std::process::id().to_string()).unwrap();
    assert_eq!(start().1.len(), 4);
}

/// The release that is installed.
const RELEASE: &str = "0.1.0-1-1";

/// Everything that has a meaning somewhere on the way to a shell, and a blank.
const ODD: &str = "run 100% $HOME \"q\" `id` \\ 'x';";

struct World {
    lab: Lab,
    root: PathBuf,
    dir: PathBuf,
    bin: PathBuf,
}

impl World {
    /// A registered node, installed in the folder of that name.
    fn new(shell: Shell, name: &str) -> Self {
        let world = Self::unregistered(shell, name);
        world.lab.network.register_node().unwrap();
        world
    }

    fn unregistered(shell: Shell, name: &str) -> Self {
        let lab = Lab::with(shell, Options::default());
        let root = lab.network.home.root().to_path_buf();
        let (dir, bin) = (root.join(name), root.join("bin"));
        for folder in [&bin, &root.join("machine"), &dir.join("releases").join(RELEASE).join("bin")] {
            fs::create_dir_all(folder).unwrap();
        }
        let program = dir.join("releases").join(RELEASE).join("bin/consensus-node");
        if fs::hard_link(&lab.program, &program).is_err() {
            fs::copy(&lab.program, &program).unwrap();
        }
        for link in ["current", "last-good"] {
            symlink(format!("releases/{RELEASE}"), dir.join(link)).unwrap();
        }
        let wrapper = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/run-node.sh");
        fs::copy(wrapper, dir.join("run-node.sh")).unwrap();
        let world = Self { lab, root, dir, bin };
        world.answer("LoadState=not-found\n");
        // It has nothing to say to the machine's own either.
        world.tool("loginctl", "echo \"loginctl $*\" >>\"$HOME/calls\"\n[ ! -e \"$HOME/fail\" ]\n");
        world.tool(
            "systemctl",
            "echo \"$*\" >>\"$HOME/calls\"\n[ ! -e \"$HOME/fail\" ] || { echo no bus >&2; exit 1; }\n\
                   case \"$*\" in *show*) cat \"$HOME/answer\" ;; esac\n",
        );
        world
    }

    /// A program that is found before the machine's.
    fn tool(&self, name: &str, body: &str) {
        let path = self.bin.join(name);
        fs::write(&path, format!("#!/bin/sh\n{body}")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// What systemd says from now on.
    fn answer(&self, text: &str) {
        fs::write(self.root.join("answer"), text).unwrap();
    }

    fn calls(&self) -> Vec<String> {
        let text = fs::read_to_string(self.root.join("calls")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn run(&self, arguments: &[&str]) -> Exit {
        let mut command = self.lab.network.node(&self.dir.join("current/bin/consensus-node"), arguments);
        let path = std::env::var("PATH").unwrap();
        command.env("PATH", format!("{}:{path}", self.bin.display()));
        NodeProcess::run(command, LONG).unwrap()
    }

    fn unit(&self) -> PathBuf {
        self.root.join(".config/systemd/user/consensus-node.service")
    }
}

const INSTALL: [&str; 5] = ["service", "install", "--user", "--supervisor", "systemd"];

#[track_caller]
fn assert_ended(exit: &Exit, code: i32, words: &[&str]) {
    let said = format!("{}{}", exit.stdout, exit.stderr());
    assert_eq!(exit.code, Some(code), "{said}");
    for word in words {
        assert!(said.contains(word), "{word}: {said}");
    }
}

/// The words of a line of a unit, as systemd reads them.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut in_quotes) = (Vec::new(), None, false);
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => {
                in_quotes = !in_quotes;
                word.get_or_insert_with(String::new);
            }
            ' ' if !in_quotes => words.extend(word.take()),
            '\\' => word.get_or_insert_with(String::new).push(chars.next().unwrap()),
            // Doubled, or it would begin something.
            '%' | '$' => {
                assert_eq!(chars.next(), Some(c), "{line}");
                word.get_or_insert_with(String::new).push(c);
            }
            c => word.get_or_insert_with(String::new).push(c),
        }
    }
    words.extend(word);
    words
}

fn values<'a>(unit: &'a str, key: &str) -> Vec<&'a str> {
    unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('=')).collect()
}

/// Has the real systemd read a unit.
fn verify(unit: &Path, arguments: &[&str]) {
    let mut command = Command::new("systemd-analyze");
    command.arg("verify").args(arguments).arg(unit).env("XDG_RUNTIME_DIR", unit.parent().unwrap());
    match command.output() {
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && !said.contains(unit.to_str().unwrap()), "{said}");
        }
        // Not `eprintln!`: the harness keeps that to itself.
        Err(_) => {
            let _ = writeln!(io::stderr(), "\nskipped: units are not verified: there is no systemd-analyze");
        }
    }
}

fn what_the_unit_of_a_user_says_starts_a_node_with_its_settings(shell: Shell) {
    let world = World::new(shell, ODD);
    let options = [
        "--listen",
        &world.lab.network.local_api.to_string(),
        "--max-streams",
        "77",
        "--update-command",
        ODD,
    ];
    let exit = world.run(&[&INSTALL[..], &options].concat());
    assert_ended(&exit, 0, &["write ", "run systemctl --user enable --now consensus-node.service", "linger"]);
    let calls =
        ["--user daemon-reload", "--user enable --now consensus-node.service", "loginctl enable-linger"];
    assert_eq!(world.calls(), calls);
    verify(&world.unit(), &["--user"]);

    let settings = world.dir.join("node.env");
    assert_eq!(fs::metadata(&settings).unwrap().permissions().mode() & 0o777, 0o600);
    let unit = fs::read_to_string(world.unit()).unwrap();
    // The path is a pattern, and in it `%` begins a specifier.
    let mut path = settings.display().to_string().replace('\\', "\\\\").replace('%', "%%");
    for special in ['*', '?', '['] {
        path = path.replace(special, &format!("\\{special}"));
    }
    assert_eq!(values(&unit, "EnvironmentFile"), [format!("-{path}")]);
    let command = words(values(&unit, "ExecStart")[0]);
    // As systemd does it: nothing of its own environment but a path, what the unit says, and the file.
    let mut started = Command::new("/bin/sh");
    started.args(["-c", "set -a; . \"$0\"; set +a; exec \"$@\""]).arg(&settings).args(&command);
    started.env_clear().env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    for line in values(&unit, "Environment") {
        // A dollar sign means nothing there.
        let variable = words(&line.replace('$', "$$")).remove(0);
        let (name, value) = variable.split_once('=').unwrap();
        started.env(name, value);
    }
    let node = NodeProcess::spawn(started).unwrap();
    world.lab.ready(&node, 1);
    let pid = fs::read_to_string(format!("/proc/{0}/task/{0}/children", node.pid())).unwrap();
    let environment = fs::read(format!("/proc/{}/environ", pid.trim())).unwrap();
    let environment: Vec<_> = environment.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
    for (name, value) in [("CONSENSUS_MAX_STREAMS", "77"), ("CONSENSUS_NODE_UPDATE_COMMAND", ODD)] {
        assert!(environment.iter().any(|one| *one == format!("{name}={value}")), "{environment:?}");
    }
    stop(node);
}

fn a_unit_of_the_machine_is_well_formed_whatever_the_paths_are(shell: Shell) {
    let world = World::new(shell, ODD);
    let state = world.root.join("state");
    // A node of the machine does not run as root; whoever runs this test may be that.
    if chown(&world.dir, Some(1), None).is_ok() {
        chown(&state, Some(1), None).unwrap();
    }
    let exit = world.run(&["service", "install", "--supervisor", "systemd", "--dry-run"]);
    assert_ended(
        &exit,
        0,
        &["would write /etc/systemd/system/consensus-node.service", "User=", "ProtectSystem=strict"],
    );
    let lines = exit.stdout.lines().skip_while(|line| !line.contains("/etc/systemd/system"));
    let text: Vec<&str> = lines.filter_map(|line| line.strip_prefix("    ")).collect();
    let unit = world.root.join("consensus-node.service");
    fs::write(&unit, text.join("\n")).unwrap();
    verify(&unit, &[]);
    assert_eq!(
        words(values(&text.join("\n"), "ExecStart")[0])[1],
        world.dir.join("run-node.sh").to_str().unwrap()
    );
    assert!(world.calls().is_empty());
}

fn a_service_is_told_of_and_taken_away(shell: Shell) {
    let world = World::new(shell, "runtime");
    assert_ended(&world.run(&["service", "status"]), 3, &["no supervisor keeps the node"]);
    assert_ended(&world.run(&["service", "uninstall"]), 3, &["no supervisor keeps the node"]);
    assert_ended(&world.run(&INSTALL), 0, &[]);
    let unit = world.unit();
    let again = world.run(&["service", "install", "--supervisor", "pm2"]);
    assert_ended(&again, 4, &["systemd", unit.to_str().unwrap(), "service uninstall"]);

    world.answer(
        "LoadState=loaded\nActiveState=active\nSubState=running\nMainPID=1\nNRestarts=4\n\
                  ActiveEnterTimestamp=Thu 2026-11-26\x1b[2J\nUnitFileState=enabled\n",
    );
    let status = world.run(&["service", "status"]);
    let dir = world.dir.to_str().unwrap();
    assert_ended(
        &status,
        0,
        &["active (running), since Thu 2026-11-26 [2J, process 1", "  4", dir, "0.1.0, proved"],
    );
    symlink("releases/0.2.0-2-2", world.dir.join("next")).unwrap();
    fs::create_dir(world.dir.join("releases/0.2.0-2-2")).unwrap();
    fs::rename(world.dir.join("next"), world.dir.join("current")).unwrap();
    // The program is no more where it was looked for.
    let status = {
        let mut command = world.lab.network.node(&world.lab.program, ["service", "status"]);
        command.env("PATH", &world.bin).env("PATH", format!("{}:/bin:/usr/bin", world.bin.display()));
        NodeProcess::run(command, LONG).unwrap()
    };
    assert_ended(&status, 0, &["0.2.0, on probation: 0.1.0 comes back"]);
    fs::remove_file(world.dir.join("current")).unwrap();
    symlink(format!("releases/{RELEASE}"), world.dir.join("current")).unwrap();
    world.answer("LoadState=loaded\nActiveState=activating\nSubState=auto-restart\n");
    assert_ended(&world.run(&["service", "status"]), 70, &["activating (auto-restart)"]);

    // What systemd cannot do any more is told, and the unit goes all the same.
    fs::write(world.root.join("fail"), "").unwrap();
    let gone = world.run(&["service", "uninstall"]);
    assert_ended(&gone, 0, &["no bus", "does not keep the node any more", dir]);
    assert!(!unit.exists() && world.dir.join("node.env").exists());
    fs::remove_file(world.root.join("fail")).unwrap();
    // The settings that are there count again.
    let before = fs::read(world.dir.join("node.env")).unwrap();
    let mut command = world.lab.network.node(&world.dir.join("current/bin/consensus-node"), INSTALL);
    command.env_remove("CONSENSUS_SERVER_URL").env("PATH", format!("{}:/bin:/usr/bin", world.bin.display()));
    assert_ended(&NodeProcess::run(command, LONG).unwrap(), 0, &[]);
    assert_eq!(fs::read(world.dir.join("node.env")).unwrap(), before);
}

fn what_cannot_be_a_service_is_told_with_its_exit_code(shell: Shell) {
    let world = World::unregistered(shell, "runtime");
    let with = |more: &[&str]| world.run(&[&INSTALL[..], more].concat());
    assert_ended(&with(&[]), 3, &["no node is registered", "register"]);
    world.lab.network.register_node().unwrap();
    assert_ended(
        &with(&["--install-dir", "/does/not/exist"]),
        3,
        &["/does/not/exist/current", "install a release"],
    );
    assert_ended(&with(&["--max-head", "0"]), 2, &["--max-head", "1 to 64"]);
    assert_ended(
        &world.run(&["service", "install", "--supervisor", "upstart"]),
        2,
        &["systemd, launchd, pm2"],
    );
    assert_ended(&world.run(&["service"]), 2, &["service --help"]);
    let pm2 = world.run(&["service", "install", "--supervisor", "pm2"]);
    assert_ended(&pm2, 3, &["start-pm2.sh"]);
    let scripts = world.dir.join("current/scripts");
    fs::create_dir(&scripts).unwrap();
    fs::write(scripts.join("start-pm2.sh"), "").unwrap();
    let mut command = world
        .lab
        .network
        .node(&world.dir.join("current/bin/consensus-node"), ["service", "install", "--supervisor", "pm2"]);
    command.env("PATH", &world.bin);
    assert_ended(&NodeProcess::run(command, LONG).unwrap(), 3, &["no pm2 in PATH", "ensure-pm2.sh"]);
    let odd = world.root.join("a\nb");
    symlink(&world.dir, &odd).unwrap();
    assert_ended(&with(&["--install-dir", odd.to_str().unwrap()]), 2, &["line end"]);
    let machine = world.run(&["service", "install", "--supervisor", "systemd", "--dry-run"]);
    // Whoever runs this test is root, or the releases are an ordinary user's.
    if fs::metadata("/proc/self").map(|of| std::os::unix::fs::MetadataExt::uid(&of)).unwrap() == 0 {
        assert_ended(&machine, 2, &["belongs to root"]);
    } else {
        assert_ended(&machine, 0, &[]);
    }
    assert!(!world.unit().exists() && !world.dir.join("node.env").exists());
    // A supervisor that fails is told, with what takes the rest away.
    fs::write(world.root.join("fail"), "").unwrap();
    assert_ended(&with(&[]), 70, &["no bus", "service uninstall"]);
}

fn a_dry_run_changes_nothing_and_shows_no_value_of_a_setting(shell: Shell) {
    let world = World::new(shell, "runtime");
    let exit = world.run(&[&INSTALL[..], &["--dry-run", "--update-command", "echo hidden"]].concat());
    let settings = world.dir.join("node.env");
    let (settings, unit) = (settings.to_str().unwrap(), world.unit());
    let shown =
        ["would write ", settings, "CONSENSUS_NODE_UPDATE_COMMAND=…", unit.to_str().unwrap(), "ExecStart="];
    assert_ended(&exit, 0, &shown);
    assert!(!exit.stdout.contains("hidden"), "{}", exit.stdout);
    assert!(!unit.exists() && !Path::new(settings).exists() && world.calls().is_empty());
    let pm2 = world.root.join("runtime/current/scripts");
    fs::create_dir(&pm2).unwrap();
    fs::write(pm2.join("start-pm2.sh"), "").unwrap();
    let exit =
        world.run(&["service", "install", "--supervisor", "pm2", "--dry-run", "--allow-private-targets"]);
    assert_ended(
        &exit,
        0,
        &["would run ", "start-pm2.sh run --allow-private-targets", "CONSENSUS_PM2_NAME=consensus-node"],
    );
}
