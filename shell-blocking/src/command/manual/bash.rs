//! Completions of bash, from version 4 on.

use argh::CommandInfoWithArgs;

use super::{Follows, follows, function, leaves, options, place};

pub(super) fn script(program: &str, all: &CommandInfoWithArgs) -> String {
    let name = function(program);
    let leaves = leaves(all);
    let top: Vec<&str> = all.commands.iter().map(|sub| sub.name).collect();
    let paths: Vec<String> = leaves.iter().map(|leaf| format!("'/{}'", leaf.path.join("/"))).collect();
    let mut after = String::new();
    let mut words = format!("        '') words='{} help --help --version' ;;\n", top.join(" "));
    for leaf in &leaves {
        let path = leaf.path.join("/");
        for flag in options(leaf.command) {
            let offer = |what: &str| format!("mapfile -t COMPREPLY < <(compgen {what} -- \"$cur\"); return");
            let then = match follows(flag) {
                Follows::Nothing => continue,
                Follows::Own => "return".to_string(),
                Follows::File => format!("compopt -o filenames; {}", offer("-f")),
                Follows::Folder => format!("compopt -o filenames; {}", offer("-d")),
                Follows::Words(words) => offer(&format!("-W '{words}'")),
            };
            after.push_str(&format!("        '/{path} {}') {then} ;;\n", flag.long));
        }
        let mut all: Vec<&str> = leaf.command.commands.iter().map(|sub| sub.name).collect();
        let files = match place(leaf.command) {
            Follows::Words(words) => {
                all.push(words);
                ""
            }
            Follows::File => " files=1",
            _ => "",
        };
        all.extend(options(leaf.command).map(|flag| flag.long));
        all.push("--help");
        words.push_str(&format!("        '/{path}') words='{}'{files} ;;\n", all.join(" ")));
    }
    format!(
        "# Completions of {program} for bash. To load them: source <({program} completions bash)\n\
         {name}() {{\n\
         \x20   local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD-1]}} path='' words='' files='' i\n\
         \x20   COMPREPLY=()\n\
         \x20   # The shell takes --name=value apart.\n\
         \x20   if [ \"$cur\" = '=' ]; then\n\
         \x20       cur=''\n\
         \x20   elif [ \"$prev\" = '=' ] && [ \"$COMP_CWORD\" -gt 1 ]; then\n\
         \x20       prev=${{COMP_WORDS[COMP_CWORD-2]}}\n\
         \x20   fi\n\
         \x20   for ((i = 1; i < COMP_CWORD; i++)); do\n\
         \x20       case $path/${{COMP_WORDS[i]}} in\n\
         \x20       {}) path=$path/${{COMP_WORDS[i]}} ;;\n\
         \x20       esac\n\
         \x20   done\n\
         \x20   case \"$path $prev\" in\n\
         {after}\
         \x20   esac\n\
         \x20   case $path in\n\
         {words}\
         \x20   esac\n\
         \x20   mapfile -t COMPREPLY < <(compgen -W \"$words\" -- \"$cur\")\n\
         \x20   if [ -n \"$files\" ] && [ ${{#COMPREPLY[@]}} -eq 0 ]; then\n\
         \x20       compopt -o filenames\n\
         \x20       mapfile -t COMPREPLY < <(compgen -f -- \"$cur\")\n\
         \x20   fi\n\
         }}\n\
         complete -F {name} {program}\n",
        paths.join("|"),
    )
}
