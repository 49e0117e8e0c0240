# fish completion for spicebridge(1)

# Prints the command on the line, else "bridge" once there is a URI, else "none"
function __spicebridge_command
    set -l option
    for word in (commandline -opc)[2..-1]
        if set -q option[1]
            set -e option
            continue
        end
        switch $word
            case --custom-channel --share --password-file --password-command --ca-file --host-subject \
                    --pinned-key --tls-ciphers --secure-channels --proxy --sasl-mechanism --connect-timeout \
                    --takeover-limit --idle-timeout --ready-fd --log-format --listen --perm --tls-cert --tls-key
                set option $word
            case '-*'
            case list serve demo
                echo $word
                return
            case '*'
                echo bridge
                return
        end
    end
    echo none
end

function __spicebridge_is
    contains -- (__spicebridge_command) $argv
end

# Whether there is no URI on the line yet
function __spicebridge_no_uri
    set -l option
    for word in (commandline -opc)[2..-1]
        if set -q option[1]
            set -e option
            continue
        end
        switch $word
            case --custom-channel --share --password-file --password-command --ca-file --host-subject \
                    --pinned-key --tls-ciphers --secure-channels --proxy --sasl-mechanism --connect-timeout \
                    --takeover-limit --idle-timeout --ready-fd --log-format --listen --perm --tls-cert --tls-key
                set option $word
            case '-*' list
            case '*'
                return 1
        end
    end
end

# Files that begin with the second argument, with the first one before each
function __spicebridge_files -a head start
    for file in (complete -C "'' "(string escape -- $start))
        set -l path (string split -m 1 \t -- $file)[1]
        echo $head(string replace -a , ,, -- $path)
    end
end

# Completes one value of --custom-channel: key=value,key=value...
function __spicebridge_spec
    set -l spec (string replace -r '^--custom-channel=' '' -- (commandline -ct | string unescape))
    # two commas are one of a value
    set -l parts (string replace -a ,, \x01 -- "$spec" | string split ,)
    set -l item (string replace -a \x01 , -- "$parts[-1]")
    set -e parts[-1]
    set -l head ''
    for part in $parts
        set head $head(string replace -a \x01 ,, -- $part),
    end

    if string match -q '*=*' -- $item
        set -l pair (string split -m 1 = -- $item)
        set head $head$pair[1]=
        set -l values
        switch $pair[1]
            case channelid
                set values port webdav usbredir smartcard
            case mode
                set values listen connect
            case demux
                set values on off
            case attach
                set values demand always
            case on-close
                set values eof keep
            case readonly
                set values off on
            case unixsocket pipe pty share
                __spicebridge_files $head $pair[2]
            case exec
                for word in (complete -C $pair[2])
                    echo $head(string split -m 1 \t -- $word)[1]
                end
        end
        for value in $values
            echo $head$value
        end
        return
    end

    set -l used (string replace -r '=.*' '' -- $parts)
    set -l ends unixsocket tcp pipe stdio exec pty fd share
    set -l ended no
    for key in $used
        contains -- $key $ends; and set ended yes
    end
    for line in \
        'channelid= channel type: 128 to 255, or a name' \
        'instance= channel id within the type' \
        'port= a port by its name' \
        'unixsocket= local end: a Unix socket' \
        'tcp= local end: a TCP port' \
        'pipe= local end: the FIFOs PATH.in and PATH.out' \
        'stdio local end: standard input and output' \
        'exec= local end: a program' \
        'pty local end: a pseudo-terminal' \
        'fd= local end: a descriptor, or its name in systemd' \
        'share= local end: a folder, over WebDAV' \
        'mode= listen or connect, for unixsocket, tcp and fd' \
        'demux= on for an application for each stream, off for raw bytes' \
        'attach= when to link the channel' \
        'perm= mode of a created socket or FIFO' \
        'on-close= what the guest\'s closing does' \
        'linger= seconds of silence after end of file' \
        'buffer= bytes held for each stream' \
        'stall= seconds that a full stream may take nothing' \
        'max-streams= streams at once' \
        'readonly= on to refuse writing to the shared folder'
        set -l pair (string split -m 1 ' ' -- $line)
        set -l key (string trim -r -c = -- $pair[1])
        contains -- $key $used; and continue
        test $ended = yes; and contains -- $key $ends; and continue
        printf '%s\t%s\n' $head$pair[1] $pair[2]
    end
end

function __spicebridge_uri
    set -l start (commandline -ct)
    if string match -q 'spice+unix://*' -- $start
        __spicebridge_files spice+unix:// (string replace 'spice+unix://' '' -- $start)
        return
    end
    printf '%s\n' spice:// spice+tls:// spice+unix:/// ws:// wss://
    # connection files, and once there is something of a path, folders
    for file in (complete -C "'' "(string escape -- $start))
        set -l path (string split -m 1 \t -- $file)[1]
        switch $path
            case '*.vv'
                echo $path
            case '*/'
                test -n "$start"; and echo $path
        end
    end
end

# Completes the last of several channel types
function __spicebridge_types
    set -l parts (string replace -r '^--secure-channels=' '' -- (commandline -ct) | string split ,)
    set -e parts[-1]
    set -l types main display inputs cursor playback record tunnel smartcard usbredir port webdav all
    for type in $types
        if set -q parts[1]
            contains -- $type all $parts; and continue
        end
        string join , $parts $type
    end
end

function __spicebridge_listen
    set -l start (string replace -r '^--listen=' '' -- (commandline -ct))
    if string match -q 'unix:*' -- $start
        __spicebridge_files unix: (string replace 'unix:' '' -- $start)
    else
        printf '%s\n' unix: 127.0.0.1:
    end
end

complete -c spicebridge -f
complete -c spicebridge -n '__spicebridge_is none' -a list \
    -d 'Show the channels that a server offers'
complete -c spicebridge -n '__spicebridge_is none' -a serve -d 'Offer channels to SPICE clients'
complete -c spicebridge -n '__spicebridge_is none' -a demo \
    -d 'Run both in one process and show bytes going through'
complete -c spicebridge -n '__spicebridge_is none list; and __spicebridge_no_uri' \
    -a '(__spicebridge_uri)' -d URI

complete -c spicebridge -n '__spicebridge_is none bridge serve' -l custom-channel -x \
    -a '(__spicebridge_spec)' -d 'Bridge a channel'
complete -c spicebridge -n '__spicebridge_is none bridge' -l share -x \
    -a '(__fish_complete_directories)' -d 'Share a folder with the guest'
complete -c spicebridge -n '__spicebridge_is none bridge list serve' -l password-file -r -F \
    -d 'Read the password from the first line of a file'
complete -c spicebridge -n '__spicebridge_is none bridge list serve' -l password-command -x \
    -a '(__fish_complete_command)' -d 'Take the password from what a command prints'
complete -c spicebridge -n '__spicebridge_is none bridge list' -l ca-file -r -F \
    -d 'Certificates of the authorities to believe'
complete -c spicebridge -n '__spicebridge_is none bridge list' -l host-subject -x \
    -d 'Subject of the certificate, instead of its name'
complete -c spicebridge -n '__spicebridge_is none bridge list' -l pinned-key -x -a sha256// \
    -d 'Digest of the public key to trust'
complete -c spicebridge -n '__spicebridge_is none bridge list' -l tls-ciphers -x \
    -d 'Ciphers of TLS 1.2'
complete -c spicebridge -n '__spicebridge_is none bridge list' -l insecure-tls \
    -d 'Do not check who the server is'
complete -c spicebridge -n '__spicebridge_is none bridge list' -l secure-channels -x \
    -a '(__spicebridge_types)' -d 'Link these channels with TLS only'
complete -c spicebridge -n '__spicebridge_is none bridge list' -l proxy -x \
    -a 'http:// https:// socks5://' -d 'Go through a proxy'
complete -c spicebridge -n '__spicebridge_is none bridge list' -l sasl-mechanism -x \
    -a 'GSSAPI SCRAM-SHA-512 SCRAM-SHA-256 SCRAM-SHA-1 PLAIN EXTERNAL' \
    -d 'Log in with this mechanism only'
complete -c spicebridge -n '__spicebridge_is none bridge list' -l connect-timeout -x \
    -d 'How long each step of reaching the server may take'
complete -c spicebridge -n '__spicebridge_is none bridge' -l reconnect \
    -d 'Stay while the server is away, and try again and again'
complete -c spicebridge -n '__spicebridge_is none bridge' -l takeover-limit -x \
    -d 'End when other clients have taken the session over so often'
complete -c spicebridge -n '__spicebridge_is none bridge' -l idle-timeout -x \
    -d 'Take the session for lost after so much silence'
complete -c spicebridge -n '__spicebridge_is none bridge serve' -l ready-fd -x \
    -d 'Tell this descriptor when everything exists'
complete -c spicebridge -n '__spicebridge_is none bridge list serve' -l log-format -x \
    -a 'text json' -d 'How to log on stderr'
complete -c spicebridge -n '__spicebridge_is none bridge list serve' -s v -l verbose -d 'Log more'
complete -c spicebridge -n '__spicebridge_is none bridge list serve' -s q -l quiet \
    -d 'Log nothing but errors'
complete -c spicebridge -n '__spicebridge_is none bridge' -l version \
    -d 'Show the version and exit'
complete -c spicebridge -n '__spicebridge_is list' -l json -d 'Print JSON'
complete -c spicebridge -n '__spicebridge_is serve' -l listen -x -a '(__spicebridge_listen)' \
    -d 'Where SPICE clients connect'
complete -c spicebridge -n '__spicebridge_is serve' -l perm -x -d 'Mode of the Unix socket'
complete -c spicebridge -n '__spicebridge_is serve' -l tls-cert -r -F \
    -d 'Speak TLS, with this certificate'
complete -c spicebridge -n '__spicebridge_is serve' -l tls-key -r -F \
    -d 'The private key of the certificate'
complete -c spicebridge -n '__spicebridge_is demo' -l keep -d 'Leave everything up to try it'
complete -c spicebridge -l help -d 'Show the options and exit'
