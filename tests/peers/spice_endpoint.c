/* A SPICE server with guests made of a few lines each, on libspice-server.
 *
 * usage: spice_endpoint --listen-fd FD [--ticket SECRET] [--content FILE --bytes N]
 *                       [--tls-port PORT --tls-key FILE --tls-cert FILE --tls-ca FILE]
 *                       [--message SIZE] [--streams M --frame F [--end-streams]] [--no-digest]
 *                       [--channel KIND:NAME]... [--closed NAME]...
 *
 * The listening socket is inherited, so that nobody else can take its port; the one for TLS the
 * library opens by itself, on 127.0.0.1. NAME is the name of a port; as in QEMU,
 * `org.spice-space.webdav.0` makes a webdav channel and `usbredir` a usbredir channel. KIND says
 * what the guest behind it does:
 *
 *   pour          sends N bytes, FILE over and over, as soon as a client has linked; takes all
 *   swallow       takes all, sends nothing
 *   slow-swallow  takes SLOW_SIZE bytes ten times a second (libspice-server asks again so often)
 *   echo          sends back what it gets; takes no more while ECHO_SIZE bytes wait to go back
 *   silent        sends nothing and takes nothing, until the command `take`
 *   count         takes all, sends one byte for each N
 *   both          is `pour`; when it has sent N bytes and received N, it sends one more
 *   mux           sends mux frames, as spice-webdavd does: the streams 1 to M take turns with F
 *                 bytes of FILE each, N in all, then with --end-streams each ends; takes all
 *
 * --message bounds what a guest gives at once, and so the size of a DATA message.
 *
 * A port is open from the start unless it is --closed. Commands, one per line on stdin:
 *
 *   event NAME opened|closed|break    tell the client a port event
 *   take NAME                         from now on a silent guest takes all
 *   stats NAME                        report on this guest
 *
 * It reports in JSON lines on stdout: {"state": NAME, "connected": BOOL, ...} when a client links
 * or unlinks, {"stats": NAME, ...} when asked, {"event": NAME, "value": N} for a port event from
 * the client. "received", "sha256" (of what was received) and "sent" are of the last client; with
 * --no-digest "sha256" is of nothing, as hashing would be most of the work.
 *
 * libspice-server calls `read` once for each wakeup, so `read` wakes it again while there is more.
 */
#include <err.h>
#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <glib-unix.h>
#include <openssl/evp.h>
#include <spice.h>
#include <spice/protocol.h>

enum { SLOW_SIZE = 16 * 1024, ECHO_SIZE = 256 * 1024 };

enum kind { POUR, SWALLOW, SLOW_SWALLOW, ECHO, SILENT, COUNT, BOTH, MUX };

static const char *const kinds[] = {"pour",  "swallow", "slow-swallow", "echo", "silent",
                                    "count", "both",    "mux",          NULL};

/* What goes before the data of each frame. */
struct __attribute__((packed)) mux_header {
    int64_t client_id;
    uint16_t size;
};

struct guest {
    SpiceCharDeviceInstance device;
    enum kind kind;
    const char *name;
    bool connected;
    bool ended; /* the client has gone: count anew with the next */
    bool rests; /* slow-swallow: the next write is refused */
    uint64_t received, sent;
    EVP_MD_CTX *digest;
    uint8_t queue[ECHO_SIZE]; /* echo: what waits to go back, a ring */
    size_t head, queued;
    uint64_t frame;  /* mux: which one is being sent, */
    size_t frame_at; /* and how many bytes of it have gone, those of its header first */
};

static struct guest *guests[256];
static size_t guest_count;
static char *content;
static gsize content_size;
static guint64 pour_size, message_size = G_MAXUINT64;
static guint64 mux_streams, mux_frame;
static gboolean mux_ends, no_digest;

/* ---- reports ---- */

static void report(struct guest *guest, const char *what)
{
    unsigned char sum[EVP_MAX_MD_SIZE];
    unsigned int size;
    EVP_MD_CTX *copy = EVP_MD_CTX_new();
    EVP_MD_CTX_copy_ex(copy, guest->digest);
    EVP_DigestFinal_ex(copy, sum, &size);
    EVP_MD_CTX_free(copy);
    printf("{\"%s\": \"%s\", \"connected\": %s, \"received\": %" PRIu64 ", \"sent\": %" PRIu64
           ", \"sha256\": \"",
           what, guest->name, guest->connected ? "true" : "false", guest->received, guest->sent);
    for (unsigned int i = 0; i < size; i++)
        printf("%02x", sum[i]);
    printf("\"}\n");
}

/* ---- the guests ---- */

/* libspice-server reads for a new client before it calls `state`. */
static void count_anew_if_ended(struct guest *guest)
{
    if (!guest->ended)
        return;
    guest->ended = false;
    guest->received = guest->sent = guest->queued = guest->frame = guest->frame_at = 0;
    EVP_DigestInit_ex(guest->digest, EVP_sha256(), NULL);
}

static void guest_state(SpiceCharDeviceInstance *device, int connected)
{
    struct guest *guest = SPICE_CONTAINEROF(device, struct guest, device);
    if (connected)
        count_anew_if_ended(guest);
    else
        guest->ended = true;
    guest->connected = connected;
    report(guest, "state");
    if (connected)
        spice_server_char_device_wakeup(device);
}

static size_t guest_room(struct guest *guest)
{
    switch (guest->kind) {
    case SILENT:
        return 0;
    case SLOW_SWALLOW:
        guest->rests = !guest->rests;
        return guest->rests ? SLOW_SIZE : 0;
    case ECHO:
        return ECHO_SIZE - guest->queued;
    default:
        return SIZE_MAX;
    }
}

static int guest_write(SpiceCharDeviceInstance *device, const uint8_t *data, int len)
{
    struct guest *guest = SPICE_CONTAINEROF(device, struct guest, device);

    count_anew_if_ended(guest);
    size_t room = guest_room(guest);
    size_t size = MIN((size_t) len, room);
    guest->received += size;
    if (!no_digest)
        EVP_DigestUpdate(guest->digest, data, size);
    if ((guest->kind == COUNT && guest->received / pour_size > guest->sent) ||
        (guest->kind == BOTH && guest->received >= pour_size))
        spice_server_char_device_wakeup(device);
    if (guest->kind == ECHO && size) {
        size_t tail = (guest->head + guest->queued) % ECHO_SIZE;
        size_t first = MIN(size, ECHO_SIZE - tail);
        memcpy(guest->queue + tail, data, first);
        memcpy(guest->queue, data + first, size - first);
        guest->queued += size;
        spice_server_char_device_wakeup(device);
    }
    return size;
}

static size_t pour(struct guest *guest, uint8_t *data, size_t len)
{
    if (guest->sent >= pour_size)
        return 0;
    size_t at = guest->sent % content_size;
    size_t size = MIN(MIN(len, pour_size - guest->sent), content_size - at);
    memcpy(data, content + at, size);
    return size;
}

static size_t echo(struct guest *guest, uint8_t *data, size_t len)
{
    size_t size = MIN(MIN(len, guest->queued), ECHO_SIZE - guest->head);
    memcpy(data, guest->queue + guest->head, size);
    guest->head = (guest->head + size) % ECHO_SIZE;
    guest->queued -= size;
    return size;
}

/* One byte for each N that have come. */
static size_t count(struct guest *guest, uint8_t *data, size_t len)
{
    size_t size = MIN(len, guest->received / pour_size - guest->sent);
    memset(data, 0, size);
    return size;
}

static size_t both(struct guest *guest, uint8_t *data, size_t len)
{
    if (guest->sent == pour_size && guest->received >= pour_size) {
        *data = 0;
        return 1;
    }
    return pour(guest, data, len);
}

static size_t mux(struct guest *guest, uint8_t *data, size_t len)
{
    uint64_t full = (pour_size + mux_frame - 1) / mux_frame;
    uint64_t all = full + (mux_ends ? mux_streams : 0);
    size_t done = 0;

    while (done < len && guest->frame < all) {
        bool is_end = guest->frame >= full;
        struct mux_header header = {
            .client_id = 1 + (is_end ? guest->frame - full : guest->frame) % mux_streams,
            .size = is_end ? 0 : MIN(mux_frame, pour_size - guest->frame * mux_frame),
        };
        bool in_header = guest->frame_at < sizeof header;
        size_t at = in_header ? guest->frame_at : guest->frame_at - sizeof header;
        const char *from = in_header ? (const char *) &header : content;
        size_t size = MIN(len - done, (in_header ? sizeof header : header.size) - at);
        memcpy(data + done, from + at, size);
        done += size;
        guest->frame_at += size;
        if (guest->frame_at == sizeof header + header.size) {
            guest->frame++;
            guest->frame_at = 0;
        }
    }
    return done;
}

static size_t give(struct guest *guest, uint8_t *data, size_t len)
{
    switch (guest->kind) {
    case POUR:
        return pour(guest, data, len);
    case ECHO:
        return echo(guest, data, len);
    case COUNT:
        return count(guest, data, len);
    case BOTH:
        return both(guest, data, len);
    case MUX:
        return mux(guest, data, len);
    default:
        return 0;
    }
}

static int guest_read(SpiceCharDeviceInstance *device, uint8_t *data, int len)
{
    struct guest *guest = SPICE_CONTAINEROF(device, struct guest, device);

    count_anew_if_ended(guest);
    size_t size = give(guest, data, MIN((size_t) len, message_size));
    guest->sent += size;
    if (size)
        spice_server_char_device_wakeup(device);
    return size;
}

static void guest_event(SpiceCharDeviceInstance *device, uint8_t event)
{
    struct guest *guest = SPICE_CONTAINEROF(device, struct guest, device);
    printf("{\"event\": \"%s\", \"value\": %u}\n", guest->name, event);
}

static SpiceCharDeviceInterface guest_interface = {
    .base.type = SPICE_INTERFACE_CHAR_DEVICE,
    .base.description = "test guest",
    .base.major_version = SPICE_INTERFACE_CHAR_DEVICE_MAJOR,
    .base.minor_version = SPICE_INTERFACE_CHAR_DEVICE_MINOR,
    .state = guest_state,
    .write = guest_write,
    .read = guest_read,
    .event = guest_event,
};

static struct guest *find_guest(const char *name)
{
    for (size_t i = 0; i < guest_count; i++)
        if (!strcmp(guests[i]->name, name))
            return guests[i];
    errx(2, "no channel is named %s", name);
}

/* `spec` is KIND:NAME */
static void add_guest(SpiceServer *server, char *spec)
{
    struct guest *guest = g_new0(struct guest, 1);
    char *colon = strchr(spec, ':');

    if (!colon || guest_count == G_N_ELEMENTS(guests))
        errx(2, "%s is not KIND:NAME, or there are too many", spec);
    *colon = '\0';
    guest->name = colon + 1;
    while (kinds[guest->kind] && strcmp(kinds[guest->kind], spec))
        guest->kind++;
    if (!kinds[guest->kind])
        errx(2, "there is no guest of kind %s", spec);
    if (guest->kind == COUNT && !pour_size)
        errx(2, "count needs --bytes");
    if (guest->kind == MUX &&
        !(mux_streams && mux_frame && mux_frame <= MIN(UINT16_MAX, content_size)))
        errx(2, "mux needs --streams, --frame, and a --content no smaller than a frame");
    guest->digest = EVP_MD_CTX_new();
    EVP_DigestInit_ex(guest->digest, EVP_sha256(), NULL);

    guest->device.base.sif = &guest_interface.base;
    guest->device.subtype = strcmp(guest->name, "usbredir") ? "port" : "usbredir";
    guest->device.portname = guest->name;
    if (spice_server_add_interface(server, &guest->device.base))
        errx(1, "libspice-server does not take %s", guest->name);
    spice_server_port_event(&guest->device, SPICE_PORT_EVENT_OPENED);
    guests[guest_count++] = guest;
}

/* ---- commands ---- */

static void obey(char *line)
{
    char **word = g_strsplit(g_strstrip(line), " ", 3);
    guint words = g_strv_length(word);

    if (words < 2)
        errx(2, "unknown command: %s", line);
    struct guest *guest = find_guest(word[1]);
    if (words == 3 && !strcmp(word[0], "event")) {
        const char *const events[] = {"opened", "closed", "break", NULL};
        uint8_t event = 0;
        while (events[event] && strcmp(events[event], word[2]))
            event++;
        if (!events[event])
            errx(2, "there is no event %s", word[2]);
        spice_server_port_event(&guest->device, event);
    } else if (!strcmp(word[0], "take")) {
        guest->kind = SWALLOW;
        spice_server_char_device_wakeup(&guest->device);
    } else if (!strcmp(word[0], "stats")) {
        report(guest, "stats");
    } else {
        errx(2, "unknown command: %s", line);
    }
    g_strfreev(word);
}

static gboolean on_stdin(GIOChannel *channel, GIOCondition condition, gpointer loop)
{
    char *line = NULL;
    if (g_io_channel_read_line(channel, &line, NULL, NULL, NULL) != G_IO_STATUS_NORMAL) {
        g_main_loop_quit(loop);
        return G_SOURCE_REMOVE;
    }
    obey(line);
    g_free(line);
    return G_SOURCE_CONTINUE;
}

/* ---- libspice-server's idea of a main loop, on GLib's ---- */

struct SpiceTimer {
    SpiceTimerFunc func;
    void *opaque;
    guint source;
};

static SpiceTimer *timer_add(SpiceTimerFunc func, void *opaque)
{
    SpiceTimer *timer = g_new0(SpiceTimer, 1);
    timer->func = func;
    timer->opaque = opaque;
    return timer;
}

static void timer_cancel(SpiceTimer *timer)
{
    if (timer->source)
        g_source_remove(timer->source);
    timer->source = 0;
}

static gboolean on_timer(gpointer data)
{
    SpiceTimer *timer = data;
    timer->source = 0;
    timer->func(timer->opaque); /* may free the timer */
    return G_SOURCE_REMOVE;
}

static void timer_start(SpiceTimer *timer, uint32_t ms)
{
    timer_cancel(timer);
    timer->source = g_timeout_add(ms, on_timer, timer);
}

static void timer_remove(SpiceTimer *timer)
{
    timer_cancel(timer);
    g_free(timer);
}

struct SpiceWatch {
    int fd;
    SpiceWatchFunc func;
    void *opaque;
    guint source;
};

static gboolean on_fd(int fd, GIOCondition condition, gpointer data)
{
    SpiceWatch *watch = data;
    int events = 0;
    if (condition & (G_IO_IN | G_IO_HUP | G_IO_ERR))
        events |= SPICE_WATCH_EVENT_READ;
    if (condition & G_IO_OUT)
        events |= SPICE_WATCH_EVENT_WRITE;
    watch->func(fd, events, watch->opaque); /* may free the watch, and its source with it */
    return G_SOURCE_CONTINUE;
}

static void watch_update_mask(SpiceWatch *watch, int events)
{
    if (watch->source)
        g_source_remove(watch->source);
    watch->source = 0;
    GIOCondition condition = (events & SPICE_WATCH_EVENT_READ ? G_IO_IN : 0) |
                             (events & SPICE_WATCH_EVENT_WRITE ? G_IO_OUT : 0);
    if (condition)
        watch->source = g_unix_fd_add(watch->fd, condition, on_fd, watch);
}

static SpiceWatch *watch_add(int fd, int events, SpiceWatchFunc func, void *opaque)
{
    SpiceWatch *watch = g_new0(SpiceWatch, 1);
    watch->fd = fd;
    watch->func = func;
    watch->opaque = opaque;
    watch_update_mask(watch, events);
    return watch;
}

static void watch_remove(SpiceWatch *watch)
{
    watch_update_mask(watch, 0);
    g_free(watch);
}

static void channel_event(int event, SpiceChannelEventInfo *info) {}

static SpiceCoreInterface core = {
    .base.type = SPICE_INTERFACE_CORE,
    .base.description = "GLib main loop",
    .base.major_version = SPICE_INTERFACE_CORE_MAJOR,
    .base.minor_version = SPICE_INTERFACE_CORE_MINOR,
    .timer_add = timer_add,
    .timer_start = timer_start,
    .timer_cancel = timer_cancel,
    .timer_remove = timer_remove,
    .watch_add = watch_add,
    .watch_update_mask = watch_update_mask,
    .watch_remove = watch_remove,
    .channel_event = channel_event,
};

int main(int argc, char **argv)
{
    int listen_fd = -1, tls_port = 0;
    char *ticket = NULL, *content_file = NULL, **channels = NULL, **closed = NULL;
    char *tls_key = NULL, *tls_cert = NULL, *tls_ca = NULL;
    const GOptionEntry options[] = {
        {"listen-fd", 0, 0, G_OPTION_ARG_INT, &listen_fd},
        {"ticket", 0, 0, G_OPTION_ARG_STRING, &ticket},
        {"content", 0, 0, G_OPTION_ARG_FILENAME, &content_file},
        {"bytes", 0, 0, G_OPTION_ARG_INT64, &pour_size},
        {"message", 0, 0, G_OPTION_ARG_INT64, &message_size},
        {"streams", 0, 0, G_OPTION_ARG_INT64, &mux_streams},
        {"frame", 0, 0, G_OPTION_ARG_INT64, &mux_frame},
        {"end-streams", 0, 0, G_OPTION_ARG_NONE, &mux_ends},
        {"no-digest", 0, 0, G_OPTION_ARG_NONE, &no_digest},
        {"tls-port", 0, 0, G_OPTION_ARG_INT, &tls_port},
        {"tls-key", 0, 0, G_OPTION_ARG_FILENAME, &tls_key},
        {"tls-cert", 0, 0, G_OPTION_ARG_FILENAME, &tls_cert},
        {"tls-ca", 0, 0, G_OPTION_ARG_FILENAME, &tls_ca},
        {"channel", 0, 0, G_OPTION_ARG_STRING_ARRAY, &channels},
        {"closed", 0, 0, G_OPTION_ARG_STRING_ARRAY, &closed},
        {0},
    };
    GError *error = NULL;
    GOptionContext *context = g_option_context_new(NULL);
    g_option_context_add_main_entries(context, options, NULL);
    if (!g_option_context_parse(context, &argc, &argv, &error))
        errx(2, "%s", error->message);
    if (content_file && !g_file_get_contents(content_file, &content, &content_size, &error))
        errx(1, "%s", error->message);
    if (pour_size && !content_size)
        errx(2, "--bytes needs a --content that is not empty");

    signal(SIGPIPE, SIG_IGN);
    setvbuf(stdout, NULL, _IOLBF, 0);

    SpiceServer *server = spice_server_new();
    if (ticket)
        spice_server_set_ticket(server, ticket, 0, 0, 0);
    else
        spice_server_set_noauth(server);
    /* Deprecated in favour of add_client, which would leave accepting to us. */
    G_GNUC_BEGIN_IGNORE_DEPRECATIONS
    spice_server_set_listen_socket_fd(server, listen_fd);
    G_GNUC_END_IGNORE_DEPRECATIONS
    spice_server_set_addr(server, "127.0.0.1", 0); /* for TLS: the other one listens already */
    if (tls_port &&
        spice_server_set_tls(server, tls_port, tls_ca, tls_cert, tls_key, NULL, NULL, NULL))
        errx(1, "libspice-server does not take the certificate");
    if (spice_server_init(server, &core))
        errx(1, "libspice-server does not start");
    for (char **spec = channels; spec && *spec; spec++)
        add_guest(server, *spec);
    for (char **name = closed; name && *name; name++)
        spice_server_port_event(&find_guest(*name)->device, SPICE_PORT_EVENT_CLOSED);
    spice_server_vm_start(server);

    GMainLoop *loop = g_main_loop_new(NULL, FALSE);
    GIOChannel *commands = g_io_channel_unix_new(0);
    g_io_add_watch(commands, G_IO_IN | G_IO_HUP, on_stdin, loop);
    printf("{\"ready\": true}\n");
    g_main_loop_run(loop);
    return 0;
}
