#compdef chiton
_chiton() {
    local -a commands
    commands=(
        'run:run the agent'
        'recover:undo an interrupted change on the disk'
        'retry:let a failed offer be tried again'
        'check:validate the settings'
        'status:ask the running agent how it is'
        'version:print version and target'
        'keygen:make a key for signing'
        'sign:sign a package or a configuration'
        'verify:check a signature'
    )
    if (( CURRENT == 2 )); then
        _describe command commands
        return
    fi
    local command=$words[2]
    shift words
    (( CURRENT-- ))
    case $command in
    run|recover|check|retry) _arguments '--config[settings file]:file:_files' '--help[help]' ;;
    status) _arguments '--config[settings file]:file:_files' '--json[for programs]' '--help[help]' ;;
    version) _arguments '--json[for programs]' '--help[help]' ;;
    keygen) _arguments '--out[private key to write]:file:_files' '--help[help]' ;;
    sign)
        _arguments '--key[private key]:file:_files' '--name[name as offered]:name:' '--version[version]:version:' \
            '--target[for which devices]:terms:' '--set[set of packages]:set:' '--counter[counter]:number:' \
            '--expires[time]:time:' '--kind[what it is]:kind:(package config)' '--unnamed[object without a name]:file:_files' \
            '--add[add a signature]' '--out[where to]:file:_files' '--help[help]' '*:file:_files'
        ;;
    verify)
        _arguments '*--pub[public key]:file:_files' '--threshold[signatures needed]:number:' \
            '--signature[signature]:file:_files' '--kind[what it is]:kind:(package config)' \
            '--unnamed[object without a name]:file:_files' '--help[help]' '*:file:_files'
        ;;
    esac
}
_chiton "$@"
