//! Completions of zsh.

use argh::{CommandInfoWithArgs, FlagInfoKind};

use super::{Follows, brief, follows, function, leaves, options, place};

/// Text inside single quotes.
fn quoted(text: &str) -> String {
    text.replace('\'', "'\\''")
}

/// Text in brackets or before a colon of a specification of `_arguments`.
fn told(text: &str) -> String {
    quoted(&brief(text).replace('\\', "\\\\").replace('[', "\\[").replace(']', "\\]").replace(':', "\\:"))
}

fn action(follows: Follows) -> String {
    match follows {
        Follows::Nothing | Follows::Own => " ".to_string(),
        Follows::File => "_files".to_string(),
        Follows::Folder => "_files -/".to_string(),
        Follows::Words(words) => format!("({words})"),
    }
}

fn arguments(command: &CommandInfoWithArgs) -> Vec<String> {
    let mut all = vec!["'(- *)'{-h,--help}'[say how it is used]'".to_string()];
    for flag in options(command) {
        let (long, about) = (flag.long, told(flag.description));
        all.push(match flag.kind {
            FlagInfoKind::Switch => format!("'{long}[{about}]'"),
            FlagInfoKind::Option { arg_name } => {
                let arg = arg_name.replace(':', "\\:");
                // The one that may be given again.
                let again = if long == "--release-key" { "*" } else { "" };
                format!("'{again}{long}=[{about}]:{arg}:{}'", action(follows(flag)))
            }
        });
    }
    all
}

pub(super) fn script(program: &str, all: &CommandInfoWithArgs) -> String {
    let name = function(program);
    let mut text = format!(
        "#compdef {program}\n\
         # Completions of {program} for zsh. To load them: source <({program} completions zsh)\n"
    );
    for leaf in leaves(all) {
        let function = format!("{name}_{}", leaf.path.join("_"));
        let mut lines = arguments(leaf.command);
        let below = &leaf.command.commands;
        if !below.is_empty() {
            lines.push("'1: :->below'".to_string());
            lines.push("'*:: :->rest'".to_string());
        } else if let Some(positional) = leaf.command.positionals.first() {
            lines.push(format!("'1:{}:{}'", positional.name, action(place(leaf.command))));
        }
        let context = if below.is_empty() { "" } else { " -C" };
        text.push_str(&format!("{function}() {{\n"));
        if !below.is_empty() {
            text.push_str("    local line state\n");
        }
        text.push_str(&format!("    _arguments{context} \\\n        {}\n", lines.join(" \\\n        ")));
        if !below.is_empty() {
            text.push_str(&choice(
                below.iter().map(|sub| (sub.name, sub.command.description)),
                "below",
                &function,
            ));
        }
        text.push_str("}\n");
    }
    let commands = all.commands.iter().map(|sub| (sub.name, sub.command.description));
    text.push_str(&format!(
        "{name}() {{\n\
         \x20   local line state\n\
         \x20   _arguments -C \\\n\
         \x20       '(- *)'{{-h,--help}}'[say how it is used]' \\\n\
         \x20       '(- *)'{{-V,--version}}'[say which release this is]' \\\n\
         \x20       '1: :->command' \\\n\
         \x20       '*:: :->rest'\n\
         {}\
         }}\n\
         if [ \"${{funcstack[1]}}\" = {name} ]; then\n\
         \x20   {name} \"$@\"\n\
         else\n\
         \x20   compdef {name} {program}\n\
         fi\n",
        choice(commands, "command", &name)
    ));
    text
}

/// Completes a subcommand in one state, and goes on with its own function in the other.
fn choice<'a>(commands: impl Iterator<Item = (&'a str, &'a str)> + Clone, state: &str, name: &str) -> String {
    let listed: String = commands
        .clone()
        .map(|(command, about)| format!("            '{command}:{}'\n", quoted(&brief(about))))
        .collect();
    let cases: String =
        commands.map(|(command, _)| format!("        {command}) {name}_{command} ;;\n")).collect();
    format!(
        "\x20   case $state in\n\
         \x20   {state})\n\
         \x20       local -a commands\n\
         \x20       commands=(\n\
         {listed}\
         \x20       )\n\
         \x20       _describe -t commands subcommand commands\n\
         \x20       ;;\n\
         \x20   rest)\n\
         \x20       case $line[1] in\n\
         {cases}\
         \x20       esac\n\
         \x20       ;;\n\
         \x20   esac\n"
    )
}
