# shellcheck shell=bash
_chiton() {
    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} command=${COMP_WORDS[1]}
    local options="--help"
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        mapfile -t COMPREPLY < <(compgen -W "run recover retry check status version keygen sign verify --help --version" -- "$word")
        return
    fi
    case $before in
    --kind)
        mapfile -t COMPREPLY < <(compgen -W "package config" -- "$word")
        return
        ;;
    --config | --out | --key | --pub | --signature | --unnamed)
        mapfile -t COMPREPLY < <(compgen -f -- "$word")
        return
        ;;
    esac
    case $command in
    run | recover | check | retry) options="--config --help" ;;
    status) options="--config --json --help" ;;
    version) options="--json --help" ;;
    keygen) options="--out --help" ;;
    sign) options="--key --name --version --target --set --counter --expires --kind --unnamed --add --out --help" ;;
    verify) options="--pub --threshold --signature --kind --unnamed --help" ;;
    esac
    case $word in
    -*) mapfile -t COMPREPLY < <(compgen -W "$options" -- "$word") ;;
    *) mapfile -t COMPREPLY < <(compgen -f -- "$word") ;;
    esac
}
complete -o filenames -F _chiton chiton
