#!/usr/bin/env bash
# Installs the SLURM that the tests of tests/slurm start themselves; `make test-slurm` calls it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source envs/system.sh

[ "$(id -u)" = 0 ] || stop "the tests start SLURM's daemons, which only root can: run 'sudo make test-slurm'."

# Root's programs are not on everybody's PATH.
PATH=$PATH:/usr/sbin:/sbin
need "munge" munge command -v munged
need "MariaDB" mariadb-server command -v mariadbd
need "SLURM" slurm-wlm command -v slurmctld
need "slurmdbd" slurmdbd command -v slurmdbd
need "SLURM's plugin for MariaDB" slurm-wlm-mysql-plugin \
    bash -c 'compgen -G "/usr/lib/*/slurm*/accounting_storage_mysql.so"'
[ ${#missing[@]} -gt 0 ] || exit 0

# Debian starts the daemons of what it installs, at once and at every start of the machine; the tests
# want neither, as they start their own.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
    trap 'rm -f $policy' EXIT
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod +x $policy
fi
install_missing "the tests on SLURM are for Debian and Ubuntu."
if command -v systemctl >/dev/null; then
    for package in "${packages[@]}"; do
        case $package in
            munge | slurmdbd) systemctl --quiet disable "$package" ;;
            mariadb-server) systemctl --quiet disable mariadb ;;
            slurm-wlm) systemctl --quiet disable slurmctld slurmd ;;
        esac
    done
fi
