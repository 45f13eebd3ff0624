//! Completions of fish.

use argh::CommandInfoWithArgs;

use super::{Follows, brief, follows, leaves, options, place};

fn quoted(text: &str) -> String {
    format!("'{}'", brief(text).replace('\\', "\\\\").replace('\'', "\\'"))
}

/// What a completion has to say of what follows.
fn after(follows: Follows) -> String {
    match follows {
        Follows::Nothing => String::new(),
        Follows::Own => " -x".to_string(),
        Follows::File => " -r -F".to_string(),
        Follows::Folder => " -x -a '(__fish_complete_directories)'".to_string(),
        Follows::Words(words) => format!(" -x -a '{words}'"),
    }
}

pub(super) fn script(program: &str, all: &CommandInfoWithArgs) -> String {
    let line = |text: String| format!("complete -c {program} {text}\n");
    let mut text = format!(
        "# Completions of {program} for fish. To load them: {program} completions fish | source\n\
         complete -c {program} -f\n\
         complete -c {program} -s h -l help -d 'say how it is used'\n"
    );
    text.push_str(&line(
        "-n __fish_use_subcommand -s V -l version -d 'say which release this is'".to_string(),
    ));
    for sub in &all.commands {
        let about = quoted(sub.command.description);
        text.push_str(&line(format!("-n __fish_use_subcommand -a {} -d {about}", sub.name)));
    }
    for leaf in leaves(all) {
        let seen: Vec<String> =
            leaf.path.iter().map(|word| format!("__fish_seen_subcommand_from {word}")).collect();
        let seen = seen.join("; and ");
        // Options of a command are not those of the one below it.
        let below: Vec<&str> = leaf.command.commands.iter().map(|sub| sub.name).collect();
        let here = if below.is_empty() {
            seen
        } else {
            format!("{seen}; and not __fish_seen_subcommand_from {}", below.join(" "))
        };
        for sub in &leaf.command.commands {
            let about = quoted(sub.command.description);
            text.push_str(&line(format!("-n '{here}' -a {} -d {about}", sub.name)));
        }
        match place(leaf.command) {
            Follows::Words(words) => text.push_str(&line(format!("-n '{here}' -a '{words}'"))),
            Follows::File => text.push_str(&line(format!("-n '{here}' -F"))),
            _ => {}
        }
        for flag in options(leaf.command) {
            let name = flag.long.trim_start_matches('-');
            let about = quoted(flag.description);
            text.push_str(&line(format!("-n '{here}' -l {name}{} -d {about}", after(follows(flag)))));
        }
    }
    text
}
