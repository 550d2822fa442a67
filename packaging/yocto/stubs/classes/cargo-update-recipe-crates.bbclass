# See conf/bitbake.conf.
