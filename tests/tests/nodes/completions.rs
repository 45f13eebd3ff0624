//! The completions and the man page, in the shells and by the formatter that they are for.
//!
//! Where one of these is not installed, the test says so, and the continuous integration takes that for a failure.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use consensus_testbed::binaries::Shell;

use crate::lab::{Lab, with_both_shells};

with_both_shells! {
    bash_completes_subcommands_options_and_values
    zsh_completes_subcommands_options_and_values
    fish_completes_subcommands_options_and_values
    the_man_page_is_set_without_a_warning_and_has_every_option
    another_shell_is_a_usage_error
}

/// What a program of the system prints; `None`, loudly, where it is not installed.
fn run(program: &str, arguments: &[&str], folder: &Path) -> Option<String> {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(folder).stdin(Stdio::null());
    command.env("HOME", folder).env("TERM", "dumb").env("LC_ALL", "C.UTF-8");
    match command.output() {
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && errors.trim().is_empty(), "{program}: {said}\n{errors}");
            Some(said)
        }
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "\nskipped: {program} is not installed: {error}");
            None
        }
    }
}

/// The file of what a subcommand prints, and the name of the program.
fn printed(lab: &Lab, arguments: &[&str]) -> (PathBuf, String) {
    let exit = lab.run(arguments);
    assert_eq!(exit.code, Some(0), "{}", exit.stderr());
    let path = lab.network.home.root().join("printed");
    fs::write(&path, exit.stdout).unwrap();
    (path, lab.program.file_name().unwrap().to_str().unwrap().to_owned())
}

/// Lines that are typed, and what is to come of them: some of all, and none of the others.
const CASES: [(&str, &[&str], &[&str]); 10] = [
    ("reg", &["register"], &["run"]),
    ("run --ping", &["--ping-seconds"], &["--server"]),
    ("start --", &["--listen", "--allow-private-targets"], &["--server", "--quick"]),
    ("run --log-level ", &["debug", "warn"], &["--server", "json"]),
    ("setup --service ", &["yes", "no"], &["setup"]),
    ("service install --supervisor ", &["systemd", "pm2"], &["install"]),
    ("config ", &["show"], &["bump"]),
    ("config show --j", &["--json"], &[]),
    ("version --", &["--json"], &["--workspace"]),
    ("completions ", &["bash", "zsh", "fish"], &[]),
];

fn check(completed: impl Fn(&str) -> Option<Vec<String>>) {
    for (typed, wanted, unwanted) in CASES {
        let Some(found) = completed(typed) else { return };
        for word in wanted {
            assert!(found.iter().any(|one| one == word), "{typed:?} gives {word}: {found:?}");
        }
        for word in unwanted {
            assert!(found.iter().all(|one| one != word), "{typed:?} does not give {word}: {found:?}");
        }
    }
}

fn bash_completes_subcommands_options_and_values(shell: Shell) {
    let lab = Lab::new(shell);
    let (path, program) = printed(&lab, &["completions", "bash"]);
    let root = lab.network.home.root();
    fs::write(root.join("a file.pem"), "").unwrap();
    let complete = |words: &[&str]| {
        let quoted: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
        let function = format!("_{}", program.replace('-', "_"));
        let script = format!(
            "set -u; compopt() {{ :; }}; source '{}'; complete -p {program} >/dev/null; COMP_WORDS=({}); \
             COMP_CWORD={}; {function}; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            path.display(),
            quoted.join(" "),
            words.len() - 1
        );
        let said = run("bash", &["--norc", "-c", &script], root)?;
        Some(said.lines().map(str::to_owned).collect::<Vec<_>>())
    };
    check(|typed| complete(&[&[program.as_str()][..], &typed.split(' ').collect::<Vec<_>>()].concat()));
    for words in [&["run", "--log", "=", "j"][..], &["run", "--log", "j"]] {
        let Some(found) = complete(&[&[program.as_str()][..], words].concat()) else { return };
        assert_eq!(found, ["json"]);
    }
    let Some(found) = complete(&[program.as_str(), "run", "--ca", "a "]) else { return };
    assert_eq!(found, ["a file.pem"]);
}

fn fish_completes_subcommands_options_and_values(shell: Shell) {
    let lab = Lab::new(shell);
    let (path, program) = printed(&lab, &["completions", "fish"]);
    check(|typed| {
        let script = format!("source '{}'; complete -C '{program} {typed}'", path.display());
        let said = run("fish", &["--no-config", "-c", &script], lab.network.home.root())?;
        Some(said.lines().filter_map(|line| line.split('\t').next()).map(str::to_owned).collect())
    });
}

/// zsh completes for a person at a terminal alone, so that it gets one: an inner zsh in a pseudo-terminal, with what
/// would be offered written out in place of being shown.
const ZSH: &str = r#"
zmodload zsh/zpty
zpty inner zsh -f -i
zpty -w inner "PS1= PS2= RPS1=; stty -echo; cd '@FOLDER@'"
zpty -w inner "autoload -Uz compinit; compinit -u -d '@FOLDER@/.zcompdump'; source '@SCRIPT@'"
zpty -w inner 'zstyle ":completion:*" insert-tab false; zstyle ":completion:*" verbose no; LISTMAX=10000'
zpty -w inner 'compadd() { local -a found; builtin compadd -O found "$@"; (( $#found )) && print -rl -- "${(@)found/#/offer:}" >>"@FOLDER@/offers"; builtin compadd "$@" }'
zpty -w inner 'finished() { print >"@FOLDER@/finished" }; zle -N finished; bindkey "^X" finished; bindkey "^I" list-choices'
zpty -w inner 'print ready-"now"'
local line
while zpty -r inner line; do [[ $line = *ready-now* ]] && break; done
zpty -w -n inner $'@TYPED@\t\x18'
while [[ ! -e '@FOLDER@/finished' ]]; do zpty -r -t inner line || zselect -t 5; done
zpty -d inner
"#;

fn zsh_completes_subcommands_options_and_values(shell: Shell) {
    let lab = Lab::new(shell);
    let (path, program) = printed(&lab, &["completions", "zsh"]);
    check(|typed| {
        let folder = lab.network.home.root();
        for file in ["offers", "finished"] {
            let _ = fs::remove_file(folder.join(file));
        }
        let script = ZSH
            .replace("@FOLDER@", folder.to_str().unwrap())
            .replace("@SCRIPT@", path.to_str().unwrap())
            .replace("@TYPED@", &format!("{program} {typed}"));
        let script = format!("zmodload zsh/zselect\n{script}");
        run("timeout", &["60", "zsh", "-f", "-c", &script], folder)?;
        let offers = fs::read_to_string(folder.join("offers")).unwrap_or_default();
        let words = offers.lines().filter_map(|line| line.strip_prefix("offer:"));
        Some(words.map(|word| word.trim_end_matches('=').to_owned()).collect())
    });
}

fn the_man_page_is_set_without_a_warning_and_has_every_option(shell: Shell) {
    let lab = Lab::new(shell);
    let (path, _) = printed(&lab, &["man"]);
    // An error is whatever is said on standard error, warnings among it.
    let Some(page) = run("man", &["--warnings", "-l", path.to_str().unwrap()], lab.network.home.root())
    else {
        return;
    };
    let page = page.split_whitespace().collect::<Vec<_>>().join(" ");
    let help = lab.run(&["run", "--help"]).stdout;
    let options = help.split_whitespace().filter(|word| word.starts_with("--") && word.len() > 2);
    for option in options.map(|word| word.trim_matches(|c: char| !c.is_ascii_alphanumeric() && c != '-')) {
        assert!(option == "--help" || page.contains(option), "{option}");
    }
    for part in ["EXIT STATUS", "config.toml", "HTTPS_PROXY", "SETTINGS", "config show", "69 the network"] {
        assert!(page.contains(part), "{part}: {page}");
    }
}

fn another_shell_is_a_usage_error(shell: Shell) {
    let lab = Lab::new(shell);
    let exit = lab.run(&["completions", "tcsh"]);
    assert_eq!(exit.code, Some(2), "{}", exit.stderr());
    assert!(exit.stderr().contains("bash, zsh, fish"), "{}", exit.stderr());
    assert_eq!(lab.run(&["completions"]).code, Some(2));
}
