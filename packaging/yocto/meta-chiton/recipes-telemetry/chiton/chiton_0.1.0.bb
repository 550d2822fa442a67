# From source. Needs Rust 1.95: wrynose and older have an older one; a layer with a newer toolchain helps, or chiton-bin.
require chiton.inc

LIC_FILES_CHKSUM = "file://LICENSE;md5=3b83ef96387f14655fc854ddc3c6bd57"

# The very tree that this layer lies in, as it is committed; or a mirror, with SRCREV.
def chiton_revision(d):
    try:
        return bb.process.run(["git", "-C", d.getVar("CHITON_TREE"), "rev-parse", "HEAD"])[0].strip()
    except bb.process.CmdError:
        return "INVALID"

CHITON_TREE = "${@os.path.abspath(d.getVar('THISDIR') + '/../../../../..')}"
CHITON_GIT ?= "git://${CHITON_TREE};protocol=file;nobranch=1"
SRC_URI = "${CHITON_GIT};destsuffix=${BP}"
SRCREV ?= "${@chiton_revision(d)}"
# What HEAD is may change without a change of this file.
BB_DONT_CACHE = "1"
require chiton-crates.inc

inherit cargo cargo-update-recipe-crates

# Features that are not in the standard build: more formats and ways, more bytes.
PACKAGECONFIG ??= ""
PACKAGECONFIG[zstd] = "--features zstd"
PACKAGECONFIG[socks] = "--features socks"
PACKAGECONFIG[seccomp] = "--features seccomp"
CARGO_BUILD_FLAGS:append = " --package chiton --bin chiton ${PACKAGECONFIG_CONFARGS}"
# What goes into -dbg is taken off by the packaging.
export CARGO_PROFILE_RELEASE_STRIP = "none"

python () {
    import re
    # As tcmode-default.inc has it.
    version = re.match(r"(\d+)\.(\d+)", d.getVar("RUSTVERSION") or "")
    if version and tuple(map(int, version.groups())) < (1, 95):
        raise bb.parse.SkipRecipe("Chiton needs Rust 1.95, RUSTVERSION is %s: take chiton-bin, or a newer toolchain" % version.group())
}

# bitbake -c update_crates would list the crates of the server and the tests too: this is made by packaging/yocto/crates.
do_configure:append() {
    sh ${CHITON_PACKAGING}/yocto/agent-only ${S}
    # Writes the shorter Cargo.lock: --frozen forbids that later.
    "${CARGO}" metadata --offline --format-version 1 --manifest-path ${S}/Cargo.toml > /dev/null
}

do_install() {
    install -d ${D}${bindir}
    install -m 0755 ${B}/target/${CARGO_TARGET_SUBDIR}/chiton ${D}${bindir}/chiton
    chiton_install_files
}
