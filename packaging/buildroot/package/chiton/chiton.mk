################################################################################
#
# chiton
#
################################################################################

CHITON_VERSION = 0.1.0
CHITON_LICENSE = Apache-2.0
CHITON_CPE_ID_VALID = NO
# Chiton's own tree, which this external tree lies in.
CHITON_TREE = $(realpath $(BR2_EXTERNAL_CHITON_PATH)/../..)
CHITON_FILES = $(CHITON_TREE)/packaging
CHITON_STATE_DIR = $(call qstrip,$(BR2_PACKAGE_CHITON_STATE_DIR))

ifeq ($(BR2_PACKAGE_CHITON_BINARY),y)

# The names of Chiton's builds.
ifeq ($(BR2_x86_64),y)
CHITON_TARGET = x86_64
else ifeq ($(BR2_i386),y)
CHITON_TARGET = i686
else ifeq ($(BR2_aarch64),y)
CHITON_TARGET = aarch64
else ifeq ($(BR2_RISCV_64),y)
CHITON_TARGET = riscv64
else ifeq ($(BR2_ARM_EABIHF)$(BR2_ARM_CPU_ARMV6),yy)
CHITON_TARGET = armv6
else
CHITON_TARGET = armv7
endif

CHITON_SITE = $(call qstrip,$(BR2_PACKAGE_CHITON_RELEASES))
CHITON_SOURCE = chiton-$(CHITON_VERSION)-$(CHITON_TARGET)

define CHITON_EXTRACT_CMDS
	cp $(CHITON_DL_DIR)/$(CHITON_SOURCE) $(@D)/chiton
endef

# It is static and stripped; what is written as it is keeps its checksum.
CHITON_BINARY_PATH = $(@D)/chiton

else

CHITON_SITE = $(CHITON_TREE)
CHITON_SITE_METHOD = local
CHITON_OVERRIDE_SRCDIR_RSYNC_EXCLUSIONS = --exclude=/target --exclude=/dist
CHITON_LICENSE_FILES = LICENSE
CHITON_FEATURES = \
	$(if $(BR2_PACKAGE_CHITON_ZSTD),zstd) \
	$(if $(BR2_PACKAGE_CHITON_SOCKS),socks) \
	$(if $(BR2_PACKAGE_CHITON_SECCOMP),seccomp)
CHITON_CARGO_BUILD_OPTS = \
	--package chiton --bin chiton \
	$(if $(strip $(CHITON_FEATURES)),--features $(subst $(space),$(comma),$(strip $(CHITON_FEATURES))))
CHITON_BINARY_PATH = $(@D)/target/$(RUSTC_TARGET_NAME)/$(if $(BR2_ENABLE_DEBUG),debug,release)/chiton

# A local tree is not downloaded, so nothing has put the crates beside it: of these versions and bytes, by Cargo.lock.
define CHITON_VENDOR
	cd $(@D) && $(TARGET_MAKE_ENV) $(PKG_CARGO_ENV) cargo fetch --locked
endef
CHITON_PRE_BUILD_HOOKS += CHITON_VENDOR

endif

# For `workload.user: chiton`; it owns nothing.
define CHITON_USERS
	chiton -1 chiton -1 * /nonexistent /bin/false - Workload of the OpAMP agent Chiton
endef

CHITON_LOG = $(if $(BR2_INIT_SYSTEMD),auto,syslog)

define CHITON_INSTALL_TARGET_CMDS
	$(INSTALL) -D -m 0755 $(CHITON_BINARY_PATH) $(TARGET_DIR)/usr/bin/chiton
	mkdir -p $(TARGET_DIR)/etc/chiton/conf.d $(TARGET_DIR)/etc/chiton/keys
	sed -e 's|@STATE_DIR@|$(CHITON_STATE_DIR)|' -e 's|@STATUS_SOCKET@|/run/chiton/status.sock|' \
		-e 's|@LOG_TO@|$(CHITON_LOG)|' $(CHITON_FILES)/chiton.yaml > $(@D)/chiton.yaml
	$(INSTALL) -m 0600 $(@D)/chiton.yaml $(TARGET_DIR)/etc/chiton/chiton.yaml
endef

# Without autostart the script is there under a name that rcS does not run.
CHITON_SCRIPT = $(if $(BR2_PACKAGE_CHITON_AUTOSTART),$(if $(BR2_PACKAGE_CHITON_RESPAWN),chiton,S60chiton),chiton)
define CHITON_INSTALL_INIT_SYSV
	rm -f $(TARGET_DIR)/etc/init.d/S60chiton $(TARGET_DIR)/etc/init.d/chiton
	$(INSTALL) -D -m 0755 $(CHITON_FILES)/sysvinit/chiton $(TARGET_DIR)/etc/init.d/$(CHITON_SCRIPT)
endef

ifeq ($(BR2_PACKAGE_CHITON_RESPAWN),y)
CHITON_INITTAB = $(if $(BR2_INIT_BUSYBOX),::respawn:,ch:2345:respawn:)/etc/init.d/chiton foreground
define CHITON_RUN_BY_INIT
	sed -i '/\/etc\/init.d\/chiton foreground/d' $(TARGET_DIR)/etc/inittab
	echo '$(CHITON_INITTAB)' >> $(TARGET_DIR)/etc/inittab
endef
CHITON_TARGET_FINALIZE_HOOKS += CHITON_RUN_BY_INIT
endif

define CHITON_INSTALL_INIT_SYSTEMD
	$(INSTALL) -D -m 0644 $(CHITON_FILES)/systemd/chiton.service $(TARGET_DIR)/usr/lib/systemd/system/chiton.service
	$(INSTALL) -D -m 0644 $(CHITON_FILES)/systemd/chiton-recover.service \
		$(TARGET_DIR)/usr/lib/systemd/system/chiton-recover.service
	$(INSTALL) -D -m 0644 $(CHITON_FILES)/systemd/parent.conf $(TARGET_DIR)/usr/share/chiton/systemd/parent.conf
	$(INSTALL) -D -m 0644 $(CHITON_FILES)/systemd/external.conf $(TARGET_DIR)/usr/share/chiton/systemd/external.conf
	mkdir -p $(TARGET_DIR)/usr/lib/systemd/system/chiton.service.d $(TARGET_DIR)/usr/lib/tmpfiles.d \
		$(TARGET_DIR)/usr/lib/systemd/system-preset
	ln -sf /usr/share/chiton/systemd/parent.conf \
		$(TARGET_DIR)/usr/lib/systemd/system/chiton.service.d/50-profile.conf
	sed -e 's|/var/lib/chiton|$(CHITON_STATE_DIR)|' $(CHITON_FILES)/systemd/tmpfiles.conf \
		> $(TARGET_DIR)/usr/lib/tmpfiles.d/chiton.conf
	echo '$(if $(BR2_PACKAGE_CHITON_AUTOSTART),enable,disable) chiton.service' \
		> $(TARGET_DIR)/usr/lib/systemd/system-preset/50-chiton.preset
	$(CHITON_INSTALL_STATE)
endef

ifneq ($(CHITON_STATE_DIR),/var/lib/chiton)
# The variable: for the day on which chiton.yaml cannot be read.
define CHITON_INSTALL_STATE
	printf '[Unit]\nRequiresMountsFor=%s\n\n[Service]\nStateDirectory=\nReadWritePaths=-%s\nEnvironment=STATE_DIRECTORY=%s\n' \
		$(CHITON_STATE_DIR) $(CHITON_STATE_DIR) $(CHITON_STATE_DIR) \
		> $(TARGET_DIR)/usr/lib/systemd/system/chiton.service.d/60-state.conf
endef
endif

ifeq ($(BR2_PACKAGE_CHITON_BINARY),y)
$(eval $(generic-package))
else
$(eval $(cargo-package))
endif
