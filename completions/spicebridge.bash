# bash completion for spicebridge(1); works with and without the package bash-completion

# Sets `words` to the words up to the cursor, put together again where bash cuts them at = and :
_spicebridge_words() {
    local line=${COMP_LINE:0:COMP_POINT} word i
    words=()
    for ((i = 0; i < COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        if [[ i -eq 0 || $line == [[:blank:]]* ]]; then
            words+=("$word")
        else
            words[-1]+=$word
        fi
        line=${line#"${line%%[![:blank:]]*}"}
        line=${line#"$word"}
    done
    # right behind = or : there is no blank, and the word goes on
    if [[ ${#words[@]} -eq 0 || $line == [[:blank:]]* ]]; then
        words+=("${line#"${line%%[![:blank:]]*}"}")
    else
        words[-1]+=$line
    fi
}

# Offers those of the words $2... that begin with $3, with $1 before each
_spicebridge_offer() {
    local head=$1 start=$2 word
    for word in "${@:3}"; do
        [[ $word == "$start"* ]] && COMPREPLY+=("$head$word")
    done
}

# Offers files (-f), folders (-d) or commands (-c), as $3 says, that begin with $2, with $1 before each; as $4
# "spec" where they are values of a specification
_spicebridge_files() {
    local head=$1 start=$2 file
    while IFS= read -r file; do
        # a comma is written twice within a specification
        [[ ${4-} ]] && file=${file//,/,,}
        COMPREPLY+=("$head$file")
    done < <(compgen "$3" -- "$start")
    compopt -o filenames 2>/dev/null
}

# Completes the specification $2, with $1 before it
_spicebridge_spec() {
    local head=$1 spec=$2 bare item key value used
    local ends='unixsocket tcp pipe stdio exec pty fd share'
    bare=${spec//,,/..}  # as long as before, with the separating commas only
    bare=${bare%"${bare##*,}"}
    item=${spec:${#bare}}
    head+=${spec:0:${#bare}}
    compopt -o nospace 2>/dev/null

    if [[ $item == *=* ]]; then
        key=${item%%=*} value=${item#*=}
        head+=$key=
        case $key in
            channelid)
                _spicebridge_offer "$head" "$value" port webdav usbredir smartcard ;;
            mode)
                _spicebridge_offer "$head" "$value" listen connect ;;
            demux)
                _spicebridge_offer "$head" "$value" on off ;;
            readonly)
                _spicebridge_offer "$head" "$value" off on ;;
            attach)
                _spicebridge_offer "$head" "$value" demand always ;;
            on-close)
                _spicebridge_offer "$head" "$value" eof keep ;;
            unixsocket | pipe | pty)
                _spicebridge_files "$head" "${value//,,/,}" -f spec ;;
            share)
                _spicebridge_files "$head" "${value//,,/,}" -d spec ;;
            exec)
                _spicebridge_files "$head" "${value//,,/,}" -c spec ;;
        esac
        return
    fi

    used=,${spec:0:${#bare}}
    used=${used//,,/..}
    for key in channelid= instance= port= unixsocket= tcp= pipe= stdio exec= pty fd= \
        share= mode= demux= attach= perm= on-close= linger= buffer= stall= max-streams= \
        readonly=; do
        [[ $used == *,"${key%=}"[=,]* ]] && continue
        if [[ " $ends " == *" ${key%=} "* && $used =~ ,(${ends// /|})[=,] ]]; then
            continue  # there is a local end already
        fi
        _spicebridge_offer "$head" "$item" "$key"
    done
}

# Offers channel types behind the last comma of $2, with $1 before all of it
_spicebridge_types() {
    local head=${2%"${2##*,}"} type
    for type in main display inputs cursor playback record tunnel smartcard usbredir port webdav; do
        [[ ,$head == *",$type,"* ]] || _spicebridge_offer "$1$head" "${2##*,}" "$type"
    done
    [[ $head ]] || _spicebridge_offer "$1" "$2" all
}

# Offers servers that begin with $1: starts of URIs, and connection files
_spicebridge_uri() {
    local file
    if [[ $1 == spice+unix://* ]]; then
        _spicebridge_files spice+unix:// "${1#spice+unix://}" -f
        return
    fi
    _spicebridge_offer '' "$1" spice:// spice+tls:// spice+unix:/// ws:// wss://
    [[ $1 && ${#COMPREPLY[@]} -eq 0 ]] && compopt -o filenames 2>/dev/null
    while IFS= read -r file; do
        if [[ -d $file ]]; then
            [[ $1 ]] && COMPREPLY+=("$file/")
        elif [[ $file == *.vv ]]; then
            COMPREPLY+=("$file")
        fi
    done < <(compgen -f -- "$1")
}

# Completes a value of option $1; $2 stands before it, $3 is what there is of it
_spicebridge_value() {
    case $1 in
        --custom-channel) _spicebridge_spec "$2" "$3" ;;
        --log-format) _spicebridge_offer "$2" "$3" text json ;;
        --password-file | --ca-file | --tls-cert | --tls-key) _spicebridge_files "$2" "$3" -f ;;
        --password-command) _spicebridge_files "$2" "$3" -c ;;
        --share) _spicebridge_files "$2" "$3" -d ;;
        --pinned-key) _spicebridge_offer "$2" "$3" sha256// ;;
        --secure-channels) _spicebridge_types "$2" "$3" ;;
        --proxy) _spicebridge_offer "$2" "$3" http:// https:// socks5:// ;;
        --sasl-mechanism)
            _spicebridge_offer "$2" "$3" GSSAPI SCRAM-SHA-512 SCRAM-SHA-256 SCRAM-SHA-1 PLAIN EXTERNAL ;;
        --listen)
            if [[ $3 == unix:* ]]; then
                _spicebridge_files "$2unix:" "${3#unix:}" -f
            else
                _spicebridge_offer "$2" "$3" unix: 127.0.0.1:
            fi
            ;;
    esac
}

_spicebridge() {
    local words cur quote='' command=bridge option='' uri='' i
    local reach='--ca-file --host-subject --pinned-key --tls-ciphers --secure-channels --proxy --sasl-mechanism'
    local with_value=" --custom-channel --share --password-file --password-command $reach
        --connect-timeout --takeover-limit --idle-timeout --ready-fd --log-format --listen --perm --tls-cert --tls-key "
    local -A options=(
        [bridge]="--custom-channel --share --password-file --password-command $reach --insecure-tls
            --connect-timeout --reconnect --takeover-limit --idle-timeout --ready-fd --log-format -v --verbose -q --quiet --version --help"
        [list]="--json --password-file --password-command $reach --insecure-tls
            --connect-timeout --log-format -v --verbose -q --quiet --help"
        [serve]='--custom-channel --listen --perm --tls-cert --tls-key --password-file
            --password-command --ready-fd --log-format -v --verbose -q --quiet --help'
        [demo]='--keep --help'
    )
    COMPREPLY=()
    _spicebridge_words
    cur=${words[-1]}
    if [[ $cur == [\'\"]* ]]; then
        quote=${cur:0:1} cur=${cur:1}
    fi

    # the command is the first word that is neither an option nor the value of one
    for ((i = 1; i < ${#words[@]} - 1; i++)); do
        if [[ $option ]]; then
            option=''
        elif [[ $with_value == *[[:space:]]"${words[i]}"[[:space:]]* ]]; then
            option=${words[i]}
        elif [[ ${words[i]} != -* ]]; then
            if [[ -z $uri && $command == bridge && ${words[i]} == @(list|serve|demo) ]]; then
                command=${words[i]}
            else
                uri=${words[i]}
            fi
        fi
    done

    if [[ $option ]]; then
        _spicebridge_value "$option" '' "$cur"
    elif [[ $cur == --*=* ]]; then
        _spicebridge_value "${cur%%=*}" "${cur%%=*}=" "${cur#*=}"
    elif [[ $cur == -* ]]; then
        # shellcheck disable=SC2086
        _spicebridge_offer '' "$cur" ${options[$command]}
    elif [[ -z $uri && $command == @(bridge|list) ]]; then
        [[ $command == bridge ]] && _spicebridge_offer '' "$cur" list serve demo
        _spicebridge_uri "$cur"
    fi

    if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[=:/] ]]; then
        compopt -o nospace 2>/dev/null
    fi
    # readline replaces only what stands behind the last = or :
    local breaks="${COMP_WORDBREAKS//[^=:]/}"
    if [[ $breaks && -z $quote && $cur == *[$breaks]* ]]; then
        local head=${cur%"${cur##*[$breaks]}"}
        COMPREPLY=("${COMPREPLY[@]#"$head"}")
    fi
}

complete -F _spicebridge spicebridge
