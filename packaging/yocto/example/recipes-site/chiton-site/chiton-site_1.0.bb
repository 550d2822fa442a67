SUMMARY = "Settings and keys of this fleet for Chiton"
DESCRIPTION = "Lies over the settings that Chiton ships with: conf.d is merged in the order of the names."
HOMEPAGE = "https://example.com/chiton"
SECTION = "net"
LICENSE = "Apache-2.0"
LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/Apache-2.0;md5=89aea4e17d99a7cacdbeed46a0096b10"

SRC_URI = "\
    file://20-fleet.yaml \
    file://release.pub \
"
UNPACKDIR ??= "${WORKDIR}"
S = "${UNPACKDIR}"

inherit allarch

do_configure[noexec] = "1"
do_compile[noexec] = "1"

do_install() {
    install -d ${D}${sysconfdir}/chiton/conf.d ${D}${sysconfdir}/chiton/keys
    install -m 0644 ${UNPACKDIR}/20-fleet.yaml ${D}${sysconfdir}/chiton/conf.d/20-fleet.yaml
    # Public: the private one is where releases are made, and nowhere else.
    install -m 0644 ${UNPACKDIR}/release.pub ${D}${sysconfdir}/chiton/keys/release.pub
}

RDEPENDS:${PN} = "chiton"
