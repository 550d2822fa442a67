do_fetch() {
    :
}
do_unpack() {
    :
}
do_configure() {
    :
}
do_compile() {
    :
}
do_install() {
    :
}
addtask fetch
addtask unpack after do_fetch
addtask configure after do_unpack
addtask compile after do_configure
addtask install after do_compile
python () {
    import re
    host = d.getVar("COMPATIBLE_HOST")
    if host and not re.match(host, d.getVar("HOST_SYS")):
        raise bb.parse.SkipRecipe("incompatible with host %s (not in COMPATIBLE_HOST)" % d.getVar("HOST_SYS"))
    flags = d.getVarFlags("PACKAGECONFIG") or {}
    chosen = (d.getVar("PACKAGECONFIG") or "").split()
    d.setVar("PACKAGECONFIG_CONFARGS", " ".join(flags[name].split(",")[0] for name in sorted(flags) if name in chosen))
}
