"""Completion in bash, for names with a colon in them.

click's own script hands over the words as bash splits them, and bash splits at ":" (COMP_WORDBREAKS), which would make
three words of `app:app_00`. This one hands over the line, and gives back only what comes after the last colon. For
zsh and fish click's scripts are right as they are.
"""

import os

from click.shell_completion import (
    BashComplete,
    CompletionItem,
    ShellComplete,
    add_completion_class,
    split_arg_string,
)

_BASH = """\
%(complete_func)s() {
    local IFS=$'\\n' response completion kind value
    response=$(COMP_LINE="${COMP_LINE:0:$COMP_POINT}" _FCGIMGR_BREAKS="$COMP_WORDBREAKS" \
%(complete_var)s=bash_complete "$1" 2>/dev/null)
    COMPREPLY=()
    for completion in $response; do
        IFS=',' read -r kind value <<< "$completion"
        case $kind in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain) COMPREPLY+=("$value") ;;
        esac
    done
}

complete -o nosort -F %(complete_func)s %(prog_name)s
"""


class _Bash(BashComplete):
    source_template = _BASH

    def source(self) -> str:
        return ShellComplete.source(self)  # BashComplete would start a bash to ask for its version

    def get_completion_args(self) -> tuple[list[str], str]:
        line = os.environ.get("COMP_LINE", "")
        words = split_arg_string(line)
        incomplete = words.pop() if words and not line[-1:].isspace() else ""
        self._kept = incomplete.rpartition(":")[0] if ":" in os.environ.get("_FCGIMGR_BREAKS", "") else ""
        return words[1:], incomplete

    def format_completion(self, item: "CompletionItem[str]") -> str:
        kept = f"{self._kept}:" if self._kept else ""
        return f"{item.type},{str(item.value).removeprefix(kept)}"


def register() -> None:
    """Make click use what is above."""
    add_completion_class(_Bash)
