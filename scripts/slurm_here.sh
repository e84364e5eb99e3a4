#!/bin/bash
# Run a command where Slurm has one node, this machine, and stop Slurm again.
#
#     apt-get install slurmctld slurmd slurm-client munge
#     scripts/slurm_here.sh FOLDER sbatch --wait scripts/job.sbatch
#
# As root, for munge; Slurm's logs and state stay in FOLDER. To try job scripts, not for use.
set -eu
folder=$(realpath -m "$1"); shift
mkdir -p "$folder/state" "$folder/spool"
host=$(hostname -s)
cat > "$folder/slurm.conf" <<END
ClusterName=here
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
MpiDefault=none
ReturnToService=2
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=4096 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
END
export SLURM_CONF="$folder/slurm.conf"
if [ ! -S /run/munge/munge.socket.2 ]; then
    mkdir -p /run/munge && chown munge: /run/munge
    runuser -u munge -- /usr/sbin/munged
fi
trap 'scancel --user=root; sleep 5; kill $(cat "$folder/slurmd.pid" "$folder/slurmctld.pid" 2>/dev/null) 2>/dev/null || true' EXIT
/usr/sbin/slurmctld
/usr/sbin/slurmd -N "$host"
"$@"
