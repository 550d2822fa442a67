# What the maintainer scripts of all formats share; packaging/build puts it at the head of each.
# A package never enables Chiton: on systemd the presets decide at the first installation, elsewhere the operator does.

systemd_runs() { [ -d /run/systemd/system ] && command -v systemctl >/dev/null 2>&1; }
openrc_runs() { [ -e /run/openrc/softlevel ] && command -v rc-service >/dev/null 2>&1; }

# Chiton failing to start must not leave a package half-configured.
or_say() { "$@" || echo "chiton: \`$*\` failed; \`chiton check\` tells whether it is the settings" >&2; }

# Through Debian's policy-rc.d where that is.
act() {
    if command -v deb-systemd-invoke >/dev/null 2>&1; then
        or_say deb-systemd-invoke "$1" chiton.service
    else
        or_say systemctl "$1" chiton.service
    fi
}

# The account for `workload.user: chiton`. Nothing depends on it.
account() {
    if command -v systemd-sysusers >/dev/null 2>&1; then
        or_say systemd-sysusers chiton.conf
    elif id -u chiton >/dev/null 2>&1; then
        :
    elif command -v useradd >/dev/null 2>&1; then
        or_say useradd --system --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin chiton
    elif command -v adduser >/dev/null 2>&1 && command -v addgroup >/dev/null 2>&1; then
        addgroup -S chiton 2>/dev/null || : # it may be there
        or_say adduser -S -D -H -h /nonexistent -s /sbin/nologin -G chiton chiton
    fi
}

directories() {
    if command -v systemd-tmpfiles >/dev/null 2>&1; then
        or_say systemd-tmpfiles --create chiton.conf
    fi
}

systemd_first() {
    if command -v systemctl >/dev/null 2>&1; then
        or_say systemctl --no-reload preset chiton.service
    fi
    systemd_again
}

# After an upgrade, or an installation on top of what a removal left. Disabled and stopped stays so.
systemd_again() {
    systemd_runs || return 0
    or_say systemctl daemon-reload
    if systemctl --quiet is-enabled chiton.service 2>/dev/null; then
        act restart
    elif systemctl --quiet is-active chiton.service 2>/dev/null; then
        act try-restart
    fi
}

systemd_stop() {
    systemd_runs || return 0
    act stop
}

systemd_reload() {
    systemd_runs || return 0
    or_say systemctl daemon-reload
}

