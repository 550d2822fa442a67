# shellcheck shell=bash
# The part of packaging/test that is about releases: packaging/release, and the state that earlier ones left.

# Where the x86_64 binary says that it was made, in seconds: the commit of a release has to be of that time.
built() { date -u -d "$("$CHITON_BINARY" version --json | sed 's/.*"build":"\([^"]*\)".*/\1/')" +%s; }
# An SBOM, judged by CycloneDX's own schema.
is_sbom() {
    PYTHONPATH=$cyclonedx python3 - "$1" <<'P'
import sys

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

sys.exit(str(JsonStrictValidator(SchemaVersion.V1_6).validate_str(open(sys.argv[1]).read()) or "") or 0)
P
}
openssl_says() { # DIRECTORY
    openssl dgst -sha256 -binary "$1/SHA256SUMS" >"$work/hash"
    openssl pkeyutl -verify -rawin -pubin -inkey "$work/release.key.pub" -in "$work/hash" -sigfile "$1/SHA256SUMS.sig"
}
flip() { # FILE: its last byte but one
    local at=$(($(stat -c %s "$1") - 2)) byte
    byte=$(od -An -tu1 -j "$at" -N 1 "$1")
    printf '%b' "\\0$(printf %o $((byte ^ 1)))" | dd of="$1" bs=1 seek="$at" conv=notrunc 2>/dev/null
}
releases() {
    step "a release"
    local place=$work/release dist=$work/dist epoch file version
    tree "$place"
    version=$("$CHITON_BINARY" version | cut -d' ' -f2)
    epoch=$(built)
    git_() { git -C "$place" -c user.name=test -c user.email=test@example.com -c init.defaultBranch=main "$@" >/dev/null; }
    save() { git_ add -A && git_ commit -qm "$1"; }
    release() { # OPTION…
        env SOURCE_DATE_EPOCH="$epoch" DIST="$dist" CHITON_RELEASE_KEY="${key:-}" "$place/packaging/release" --no-build --targets x86_64 "$@"
    }
    local key=$work/release.key
    must "there is a key" "$CHITON_BINARY" keygen --out "$key"
    git_ init
    sed -i "s/^## \[$version\].*/## [$version] - 2026-01-02/" "$place/CHANGELOG.md"
    save "a release"
    must "it is made" release
    must "the sums are right" sh -c "cd '$dist' && sha256sum --strict --quiet -c SHA256SUMS"
    must "every file has one" diff <(cd "$dist" && find . -type f ! -name 'SHA256SUMS*' -printf '%P\n' | sort) <(awk '{ print $2 }' "$dist/SHA256SUMS" | sort)
    must "chiton verify finds the signature good" "$CHITON_BINARY" verify --pub "$key.pub" "$dist/SHA256SUMS"
    must "so does openssl" openssl_says "$dist"
    must "the archive's binary is the one" cmp <(tar -xzOf "$dist/chiton-$version-x86_64.tar.gz" "chiton-$version-x86_64/chiton") "$CHITON_BINARY"
    for file in LICENSE NOTICES.gz CHANGELOG.md chiton.yaml man/chiton.1.gz completions/chiton.bash systemd/chiton.service; do
        must "the archive has $file" grep -qx "chiton-$version-x86_64/$file" <(tar -tzf "$dist/chiton-$version-x86_64.tar.gz")
    done
    must "the source is there" grep -qx "chiton-$version/CHANGELOG.md" <(tar -tzf "$dist/chiton-$version-source.tar.gz")

    local sbom=$dist/chiton-$version-x86_64.cdx.json cyclonedx=$CARGO_TARGET_DIR/packaging/cyclonedx-11.12.0
    if [ ! -d "$cyclonedx" ]; then
        python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --target "$cyclonedx" \
            'cyclonedx-python-lib[json-validation]==11.12.0'
    fi
    must "the SBOM is one" is_sbom "$sbom"
    sed 's/"components"/"parts"/' "$sbom" >"$work/bad.json"
    never "anything is" is_sbom "$work/bad.json"
    must "it is of that binary" grep -qF "$(sha256sum "$CHITON_BINARY" | cut -d' ' -f1)" "$sbom"
    for file in ring rustls musl compiler_builtins "Rust's standard library"; do
        must "it names $file" grep -qF "\"name\": \"$file\"" "$sbom"
    done
    never "it names what only tests use" grep -q '"name": "proptest"' "$sbom"
    cp "$dist/SHA256SUMS" "$work/first"
    must "it is made again" release
    must "the same bytes" cmp "$dist/SHA256SUMS" "$work/first"

    step "a release: tampered with"
    rm -rf "$work/tampered"
    for file in SHA256SUMS SHA256SUMS.sig; do
        rm -rf "$work/tampered"
        cp -r "$dist" "$work/tampered"
        flip "$work/tampered/$file"
        never "chiton verify takes a bit more in $file" "$CHITON_BINARY" verify --pub "$key.pub" "$work/tampered/SHA256SUMS"
        never "openssl takes it" openssl_says "$work/tampered"
    done
    flip "$work/tampered/chiton_$version-1_amd64.deb"
    never "the sums take a bit more in a package" sh -c "cd '$work/tampered' && sha256sum --quiet -c SHA256SUMS"

    step "a release: refused"
    refused() { # TEXT WORD-OF-THE-REASON OPTION…
        local text=$1 reason=$2
        shift 2
        never "$text" release "$@"
        cp "$work/out" "$work/said"
        must "it says why: $reason" grep -q -- "$reason" "$work/said"
        must "what was there is as it was" cmp "$dist/SHA256SUMS" "$work/first"
    }
    : >"$place/dirt"
    refused "a tree with changes is released" "not committed"
    rm "$place/dirt"
    : >"$dist/mine"
    refused "another's file is taken into it, or away" "in the way"
    rm "$dist/mine"
    openssl genpkey -algorithm rsa -pkeyopt rsa_keygen_bits:2048 -out "$work/rsa.key" 2>/dev/null
    key=$work/rsa.key refused "a key of another kind signs" "no Ed25519 key"
    sed -i "s/^## \[$version\].*/## [$version] - unreleased/" "$place/CHANGELOG.md"
    save "no date"
    refused "a version without a date is released" "no date"
    sed -i "s/^## \[$version\].*/## [9.9.9] - 2026-01-02/" "$place/CHANGELOG.md"
    save "no entry"
    refused "a version without an entry is released" "no entry"
    refused "for a try it is" "no entry" --allow-dirty
    sed -i "s/^## \[9.9.9\].*/## [$version] - 2026-01-02/" "$place/CHANGELOG.md"
    save "as it was"
    epoch=$((epoch + 1))
    never "a binary of another commit is released" release
    cp "$work/out" "$work/said"
    must "it says why" grep -q "of another commit" "$work/said"
    key=""
    must "for a try, unsigned, it is" release --allow-dirty
    cp "$work/out" "$work/said"
    must "that is said" grep -q UNSIGNED "$work/said"
    never "a signature is there" test -e "$dist/SHA256SUMS.sig"

    step "signed packages"
    if ! command -v gpg >/dev/null; then
        echo "no gpg here: left out"
        return
    fi
    mkdir -m 700 "$work/gpg"
    gpg_() { gpg --homedir "$work/gpg" --batch --quiet --pinentry-mode loopback --passphrase "" "$@"; }
    gpg_ --quick-generate-key "release <release@example.com>" rsa2048 sign never 2>/dev/null
    gpg_ --armor --export-secret-keys >"$work/rpm.key"
    gpg_ --armor --export >"$work/rpm.pub"
    gpgconf --homedir "$work/gpg" --kill all 2>/dev/null || :
    must "they are built" env FORMATS="rpm apk" DIST="$work/signed" CHITON_VERSION=0.9.0 CHITON_RPM_KEY="$work/rpm.key" \
        CHITON_APK_KEY="$work/rsa.key" CHITON_APK_KEY_NAME=release "$here/build" x86_64
    make_root keys
    rpm --root="$root" --dbpath=/var/lib/rpm --import "$work/rpm.pub" >/dev/null 2>&1
    signed() { rpm --root="$root" --dbpath=/var/lib/rpm --checksig "$1"; }
    must "rpm finds the signature good" grep -q "signatures OK" <(signed "$work"/signed/*.rpm 2>&1)
    never "it finds one in the other" grep -q "signatures OK" <(signed "$old"/*.rpm 2>&1)
    must "apk finds the key's name" grep -qx ".SIGN.RSA.release.rsa.pub" <(tar -tzf "$work"/signed/*.apk 2>/dev/null)
}
