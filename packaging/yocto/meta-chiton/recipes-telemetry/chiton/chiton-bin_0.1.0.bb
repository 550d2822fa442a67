# The static binary of a release, whatever C library and Rust the image has. Needs this layer inside Chiton's own tree, from
# which the units and the init script come.
require chiton.inc

LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/Apache-2.0;md5=89aea4e17d99a7cacdbeed46a0096b10"

# A directory with chiton-VERSION-TARGET, https:// or file://. Over a network a checksum has to be there as well:
# packaging/yocto/checksums writes chiton-bin-checksums.inc of what a release brought.
CHITON_RELEASES ?= "https://example.com/chiton/releases/v${PV}"
CHITON_PACKAGING = "${THISDIR}/../../../.."

# The name that Chiton's builds have for this processor.
def chiton_target(d):
    arch = d.getVar("TARGET_ARCH") or ""
    tune = (d.getVar("TUNE_FEATURES") or "").split()
    if arch in ("x86_64", "aarch64", "riscv64"):
        return arch
    # It needs SSE2, which tunes older than these have not.
    if arch in ("i586", "i686") and {"core2", "corei7", "x86-64-v3"} & set(tune):
        return "i686"
    if arch == "arm" and "callconvention-hard" in tune:
        if {"armv7a", "armv7ve", "armv8a"} & set(tune):
            return "armv7"
        if "armv6" in tune:
            return "armv6"
    return "none"

CHITON_TARGET ?= "${@chiton_target(d)}"
COMPATIBLE_HOST = "(x86_64|i[56]86|aarch64|arm|riscv64).*-linux.*"

python () {
    if d.getVar("CHITON_TARGET") == "none":
        raise bb.parse.SkipRecipe("there is no static binary for this processor: build chiton from source")
}

PROVIDES += "chiton"

SRC_URI = "${CHITON_RELEASES}/chiton-${PV}-${CHITON_TARGET};name=${CHITON_TARGET}"
include chiton-bin-checksums.inc

# scarthgap unpacks into WORKDIR.
UNPACKDIR ??= "${WORKDIR}"
S = "${UNPACKDIR}"

RPROVIDES:${PN} = "chiton"
RCONFLICTS:${PN} = "chiton"
RREPLACES:${PN} = "chiton"

# It is made as it is: static, stripped, linked elsewhere.
INHIBIT_PACKAGE_STRIP = "1"
INHIBIT_PACKAGE_DEBUG_SPLIT = "1"
INHIBIT_DEFAULT_DEPS = "1"
INSANE_SKIP:${PN} += "already-stripped ldflags"

do_configure[noexec] = "1"
do_compile[noexec] = "1"

do_install() {
    install -d ${D}${bindir}
    binary=$(find ${UNPACKDIR} -type f -name chiton-${PV}-${CHITON_TARGET})
    install -m 0755 $binary ${D}${bindir}/chiton
    chiton_install_files
}
