/* The peer to beat: a SPICE port as a Unix socket, on spice-client-glib.
 *
 * usage: glib_bridge [--ca-file FILE] URI PORTNAME SOCKETPATH
 *
 * It links the port, listens, prints {"ready": true}, and serves one application after the other
 * until it is ended.
 *
 * The library knows no back pressure: it hands over each message and reads the next one when the
 * handler returns. So the handler writes to the application and does not return before all is
 * written. As the library sends nothing either while it is at it, only the main channel's pings
 * have to be thought of, and a blocking write that is given up now and then does for them.
 *
 * libspice-server 0.15.1 crashes if a client leaves a port before it was sent the port's name, so
 * all ports are linked until all have names.
 */
#include <err.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <glib-unix.h>
#include <spice-client.h>

enum {
    UP_SIZE = 256 * 1024,    /* bytes taken from the application at once */
    SMALL = 4 * 1024,        /* messages below that are held, while there are more to come, */
    HELD_SIZE = 64 * 1024,   /* up to that many bytes, to be written at once */
    PATIENCE_US = 50 * 1000, /* how long a write may hold up the main loop */
};

static const char *port_name, *socket_path;
static GPtrArray *ports;
static SpicePortChannel *port; /* the one that is wanted, when all have names, */
static int port_fd;            /* and its socket */
static int listener;

static int application = -1;
static unsigned int applications; /* so far */
static GSource *ear;              /* what waits for the application to say something */
static gpointer listening;        /* while it does */
static bool writing;              /* what it has said */
static uint8_t held[HELD_SIZE];   /* for it */
static size_t held_size;
static guint flusher; /* what writes it, should the last message of a batch not be data */

/* ---- from the application to the port ---- */

static void read_application(void);

static gboolean on_connection(int fd, GIOCondition condition, gpointer data)
{
    const struct timeval patience = {.tv_usec = PATIENCE_US};
    application = accept(fd, NULL, NULL);
    if (application < 0)
        err(1, "accept");
    setsockopt(application, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    applications++;
    read_application();
    return G_SOURCE_REMOVE;
}

static void listen_for(GIOCondition condition)
{
    if (listening)
        g_source_remove_unix_fd(ear, listening);
    listening = condition ? g_source_add_unix_fd(ear, application, condition) : NULL;
}

static void leave(void)
{
    listen_for(0);
    close(application);
    application = -1;
    held_size = 0;
    g_unix_fd_add(listener, G_IO_IN, on_connection, NULL);
}

static void on_written(GObject *channel, GAsyncResult *result, gpointer data)
{
    GError *error = NULL;
    if (spice_port_channel_write_finish(port, result, &error) < 0)
        errx(1, "%s", error->message);
    writing = false;
    if (!listening)
        listen_for(G_IO_IN);
}

static void read_application(void)
{
    static uint8_t data[UP_SIZE];
    ssize_t n = recv(application, data, sizeof data, MSG_DONTWAIT);

    if (n > 0) {
        writing = true;
        spice_port_channel_write_async(port, data, n, NULL, on_written, NULL);
    } else if (n == 0) {
        listen_for(G_IO_HUP); /* it may yet take something */
    } else if (errno != EAGAIN) {
        leave();
    } else if (!listening) {
        listen_for(G_IO_IN);
    }
}

/* Every change of what GLib listens for costs a system call and a turn of the main loop. So this
 * stays on while a write is under way, and goes off only when it turns out to be in the way. */
static gboolean on_readable(GSource *source, GSourceFunc callback, gpointer data)
{
    if (writing)
        listen_for(0);
    else if (g_source_query_unix_fd(ear, listening) & G_IO_IN)
        read_application();
    else
        leave();
    return G_SOURCE_CONTINUE;
}

static GSourceFuncs ear_functions = {.dispatch = on_readable};

/* ---- from the port to the application ---- */

static bool is_wanted(gpointer channel)
{
    g_autofree char *name = NULL;
    g_object_get(channel, "port-name", &name, NULL);
    return !strcmp(name, port_name);
}

/* Only for a handler of the port: then no message can come while this runs the main loop. */
static void put(const uint8_t *data, size_t size)
{
    /* What is left for one that has gone is for nobody. */
    for (unsigned int whose = applications; size && whose == applications && application >= 0;) {
        ssize_t n = send(application, data, size, MSG_NOSIGNAL);
        if (n > 0) {
            data += n;
            size -= n;
        } else if (errno != EAGAIN) {
            return;
        } else {
            while (g_main_context_iteration(NULL, FALSE))
                ;
        }
    }
}

static void put_held(void)
{
    size_t size = held_size;
    held_size = 0;
    put(held, size);
}

static gboolean on_idle(gpointer data)
{
    ssize_t n = held_size ? send(application, held, held_size, MSG_NOSIGNAL) : 0;
    if (n > 0)
        memmove(held, held + n, held_size -= n);
    else if (n < 0 && errno != EAGAIN)
        held_size = 0;
    if (!held_size)
        flusher = 0;
    return held_size ? G_SOURCE_CONTINUE : G_SOURCE_REMOVE;
}

static void on_data(gpointer channel, const uint8_t *data, int size)
{
    int more = 0;
    if (channel != port && !is_wanted(channel))
        return;
    while (application < 0)
        g_main_context_iteration(NULL, TRUE);

    if (size >= SMALL || held_size + size > HELD_SIZE)
        put_held();
    if (size >= SMALL) {
        put(data, size);
        return;
    }
    memcpy(held + held_size, data, size);
    held_size += size;
    ioctl(port_fd, FIONREAD, &more);
    if (!more)
        put_held();
    else if (!flusher) /* after all that GLib has to do with the messages that are there */
        flusher = g_idle_add_full(G_PRIORITY_LOW, on_idle, NULL, NULL);
}

/* ---- the session ---- */

static void begin(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(socket_path) >= sizeof address.sun_path)
        errx(2, "the path is too long: %s", socket_path);
    strcpy(address.sun_path, socket_path);
    listener = socket(AF_UNIX, SOCK_STREAM, 0);
    if (bind(listener, (struct sockaddr *) &address, sizeof address) || listen(listener, 1))
        err(1, "listen at %s", socket_path);
    g_unix_fd_add(listener, G_IO_IN, on_connection, NULL);
    ear = g_source_new(&ear_functions, sizeof *ear);
    g_source_set_can_recurse(ear, TRUE); /* lest it be taken out of the poll for each dispatch */
    g_source_attach(ear, NULL);
    printf("{\"ready\": true}\n");
    fflush(stdout);
}

static void on_event(gpointer channel, SpiceChannelEvent event)
{
    if (event != SPICE_CHANNEL_OPENED)
        errx(1, "a channel has ended: event %d", event);
}

static void on_name(void)
{
    for (guint i = 0; i < ports->len; i++) {
        g_autofree char *name = NULL;
        g_object_get(ports->pdata[i], "port-name", &name, NULL);
        if (!name)
            return;
    }
    for (guint i = 0; i < ports->len; i++) {
        if (is_wanted(ports->pdata[i])) {
            port = ports->pdata[i];
        } else {
            g_signal_handlers_disconnect_by_func(ports->pdata[i], on_event, NULL);
            spice_channel_disconnect(ports->pdata[i], SPICE_CHANNEL_NONE);
        }
    }
    if (!port)
        errx(1, "there is no port %s", port_name);
    GSocket *socket;
    g_object_get(port, "socket", &socket, NULL);
    port_fd = g_socket_get_fd(socket);
    begin();
}

/* All channels of the server's list are made before the first of them is linked. */
static void on_channel(SpiceSession *session, SpiceChannel *channel)
{
    g_signal_connect(channel, "channel-event", G_CALLBACK(on_event), NULL);
    if (!SPICE_IS_PORT_CHANNEL(channel))
        return;
    g_ptr_array_add(ports, channel);
    g_signal_connect(channel, "notify::port-name", G_CALLBACK(on_name), NULL);
    g_signal_connect(channel, "port-data", G_CALLBACK(on_data), NULL);
    spice_channel_connect(channel);
}

int main(int argc, char **argv)
{
    g_autofree char *ca_file = NULL;
    const GOptionEntry options[] = {
        {"ca-file", 0, 0, G_OPTION_ARG_FILENAME, &ca_file},
        {0},
    };
    GError *error = NULL;
    GOptionContext *context = g_option_context_new("URI PORTNAME SOCKETPATH");
    g_option_context_add_main_entries(context, options, NULL);
    if (!g_option_context_parse(context, &argc, &argv, &error))
        errx(2, "%s", error->message);
    if (argc != 4)
        errx(2, "%s", g_option_context_get_help(context, TRUE, NULL));
    port_name = argv[2];
    socket_path = argv[3];
    ports = g_ptr_array_new();

    SpiceSession *session = spice_session_new();
    g_object_set(session, "uri", argv[1], "ca-file", ca_file, "enable-audio", FALSE,
                 "enable-usbredir", FALSE, "enable-smartcard", FALSE, NULL);
    g_signal_connect(session, "channel-new", G_CALLBACK(on_channel), NULL);
    if (!spice_session_connect(session))
        errx(1, "%s cannot be connected to", argv[1]);
    g_main_loop_run(g_main_loop_new(NULL, FALSE));
    return 0;
}
