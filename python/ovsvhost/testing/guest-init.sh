#!/bin/busybox sh
# First process of a test guest: loads the network driver, gives a shell on the console and obeys the agent's port.
#
# The agent's protocol, one line each way on the second serial port:
#     <id> <command, base64>          ->  runs it with sh, its input closed
#     <id> <exit code> <output, base64>   <-
# The first line it says is "ready".

/bin/busybox mkdir -p /proc /sys /dev /tmp /run /root /var/www
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs devtmpfs /dev
/bin/busybox --install -s /bin
export PATH=/bin:/sbin:/usr/bin HOME=/root

while read -r module; do insmod "/modules/$module.ko" || echo "module $module does not load"; done </modules/order

ip link set lo up
# Duplicate address detection costs a second per address and the addresses are ours to choose.
echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad
echo 0 >/proc/sys/net/ipv6/conf/all/accept_ra
for device in /sys/class/net/eth*; do
    [ -e "$device" ] && echo 0 >"/proc/sys/net/ipv6/conf/${device##*/}/accept_dad"
done

(while :; do setsid cttyhack sh; done) </dev/ttyS0 >/dev/ttyS0 2>&1 &

agent() {
    exec 3<>/dev/ttyS1
    stty raw -echo -echoe -echok 115200 <&3
    echo ready >&3
    while read -r id command <&3; do
        echo "$command" | base64 -d >/tmp/agent.command
        sh /tmp/agent.command >/tmp/agent.output 2>&1 </dev/null
        code=$?
        echo "$id $code $(base64 -w 0 /tmp/agent.output)" >&3
    done
    echo "agent: its serial port closed"
}

# A process of its own: a command's background jobs become the first process's children, and the shell's "read" begins
# anew when a child ends, without what it had read of the line.
agent &
wait $!
exec sh </dev/console >/dev/console 2>&1
