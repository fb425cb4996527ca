import io.debezium.embedded.Connect;
import io.debezium.engine.DebeziumEngine;
import io.debezium.engine.DebeziumEngine.RecordCommitter;
import io.debezium.engine.RecordChangeEvent;
import io.debezium.engine.format.ChangeEventFormat;
import java.io.BufferedInputStream;
import java.io.BufferedOutputStream;
import java.io.DataInputStream;
import java.io.IOException;
import java.io.OutputStream;
import java.io.PrintStream;
import java.net.Socket;
import java.net.URI;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.time.Instant;
import java.util.List;
import java.util.Properties;
import java.util.UUID;
import org.apache.kafka.connect.source.SourceRecord;

/**
 * Debezium's engine with its outbox event router, from PostgreSQL's log into JetStream. The bench
 * starts it and reads from its standard output when how many events were acknowledged.
 *
 * <p>Arguments: address of the database, address of NATS, stream, "batches" or "single", folder for
 * its offsets, and settings of Debezium as name=value.
 */
public final class Outbox {
    /** As many events as a fast-ingest batch of the other contenders has. */
    private static final int BATCH_EVENTS = 1_000;

    public static void main(String[] arguments) throws Exception {
        long begun = System.nanoTime();
        // Whatever logs to standard output must not stand between the lines for the bench.
        PrintStream steps = System.out;
        System.setOut(System.err);
        URI database = URI.create(arguments[0]);
        Nats nats = new Nats(URI.create(arguments[1]), arguments[2], arguments[3].equals("batches"));
        Properties settings = settings(database, Path.of(arguments[4]));
        for (int at = 5; at < arguments.length; at++) {
            String[] setting = arguments[at].split("=", 2);
            settings.setProperty(setting[0], setting[1]);
        }
        DebeziumEngine<RecordChangeEvent<SourceRecord>> engine =
                DebeziumEngine.create(ChangeEventFormat.of(Connect.class))
                        .using(settings)
                        .using(
                                (success, message, error) -> {
                                    System.err.println("the engine ended: " + message);
                                    if (error != null) {
                                        error.printStackTrace();
                                    }
                                    System.exit(1);
                                })
                        .notifying(
                                (records, committer) -> {
                                    deliver(nats, records, committer);
                                    double seconds = (System.nanoTime() - begun) / 1e9;
                                    steps.println(seconds + " " + records.size());
                                    steps.flush();
                                })
                        .build();
        engine.run();
    }

    private static Properties settings(URI database, Path folder) {
        Properties settings = new Properties();
        settings.setProperty("name", "bench");
        settings.setProperty(
                "connector.class", "io.debezium.connector.postgresql.PostgresConnector");
        settings.setProperty("database.hostname", database.getHost());
        settings.setProperty("database.port", String.valueOf(database.getPort()));
        settings.setProperty("database.user", database.getUserInfo());
        settings.setProperty("database.password", "");
        settings.setProperty("database.dbname", database.getPath().substring(1));
        settings.setProperty("topic.prefix", "bench");
        settings.setProperty("plugin.name", "pgoutput");
        // Both were made before the events were stored, as a service has them.
        settings.setProperty("slot.name", "bench");
        settings.setProperty("publication.name", "bench");
        settings.setProperty("publication.autocreate.mode", "disabled");
        settings.setProperty("snapshot.mode", "no_data");
        settings.setProperty("table.include.list", "public.outboxevent");
        settings.setProperty(
                "offset.storage", "org.apache.kafka.connect.storage.FileOffsetBackingStore");
        settings.setProperty("offset.storage.file.filename", folder.resolve("offsets").toString());
        settings.setProperty("transforms", "outbox");
        settings.setProperty("transforms.outbox.type", "io.debezium.transforms.outbox.EventRouter");
        settings.setProperty(
                "transforms.outbox.table.fields.additional.placement", "type:header:eventType");
        return settings;
    }

    /** All of a batch are under way together; it ends when all are acknowledged. */
    private static void deliver(
            Nats nats,
            List<RecordChangeEvent<SourceRecord>> records,
            RecordCommitter<RecordChangeEvent<SourceRecord>> committer)
            throws InterruptedException {
        try {
            for (int from = 0; from < records.size(); from += BATCH_EVENTS) {
                int to = Math.min(from + BATCH_EVENTS, records.size());
                nats.publish(records.subList(from, to));
            }
            nats.waitForAnswers();
        } catch (IOException error) {
            throw new RuntimeException(error);
        }
        for (RecordChangeEvent<SourceRecord> record : records) {
            committer.markProcessed(record);
        }
        committer.markBatchFinished();
    }

    /** What the bench needs of the protocol of NATS; its Java client is in no registry it uses. */
    private static final class Nats {
        private final String stream;
        private final boolean takesBatches;
        private final String inbox = "_INBOX." + UUID.randomUUID();
        private final OutputStream output;
        private final DataInputStream input;
        private long batches;
        private long awaited;
        private long answered;
        private String broken;

        Nats(URI server, String stream, boolean takesBatches) throws IOException {
            this.stream = stream;
            this.takesBatches = takesBatches;
            Socket socket = new Socket(server.getHost(), server.getPort());
            socket.setTcpNoDelay(true);
            output = new BufferedOutputStream(socket.getOutputStream(), 1 << 16);
            input = new DataInputStream(new BufferedInputStream(socket.getInputStream(), 1 << 16));
            write("CONNECT {\"verbose\":false,\"pedantic\":false,\"headers\":true,"
                    + "\"no_responders\":true,\"lang\":\"java\",\"version\":\"0\"}\r\n"
                    + "SUB " + inbox + ".> 1\r\n");
            output.flush();
            Thread reader = new Thread(this::read, "nats");
            reader.setDaemon(true);
            reader.start();
        }

        /** Sends at most a batch, with the headers of posthaste's bus. */
        void publish(List<RecordChangeEvent<SourceRecord>> records) throws IOException {
            batches++;
            int position = 0;
            for (RecordChangeEvent<SourceRecord> each : records) {
                position++;
                SourceRecord record = each.record();
                String id = record.headers().lastWithName("id").value().toString();
                String type = record.headers().lastWithName("eventType").value().toString();
                String key = record.key().toString();
                byte[] body = record.value().toString().getBytes(StandardCharsets.UTF_8);
                String reply = inbox + "." + batches;
                if (takesBatches) {
                    // 0 begins a batch, 1 goes on, 2 ends it.
                    int operation = position == records.size() ? 2 : position == 1 ? 0 : 1;
                    reply += ".1000.fail." + position + "." + operation + ".$FI";
                }
                String headers =
                        "NATS/1.0\r\nNats-Msg-Id: " + id
                                + "\r\nNats-Expected-Stream: " + stream
                                + "\r\nph-id: " + id
                                + "\r\nph-type: " + type
                                + "\r\nph-key: " + key
                                + "\r\nph-aggregate-id: " + key
                                + "\r\nph-created-at: " + Instant.ofEpochMilli(record.timestamp())
                                + "\r\ncontent-type: application/json\r\n\r\n";
                synchronized (output) {
                    write("HPUB " + stream + "." + type + " " + reply + " " + headers.length() + " "
                            + (headers.length() + body.length) + "\r\n" + headers);
                    output.write(body);
                    write("\r\n");
                }
            }
            synchronized (this) {
                awaited += takesBatches ? 1 : records.size();
            }
        }

        void waitForAnswers() throws IOException, InterruptedException {
            synchronized (output) {
                output.flush();
            }
            synchronized (this) {
                while (answered < awaited && broken == null) {
                    wait();
                }
                if (broken != null) {
                    throw new IOException(broken);
                }
            }
        }

        private void read() {
            try {
                while (true) {
                    String line = readLine();
                    if (line.startsWith("MSG ")) {
                        int length = Integer.parseInt(line.substring(line.lastIndexOf(' ') + 1));
                        byte[] body = new byte[length];
                        input.readFully(body);
                        readLine();
                        answer(new String(body, StandardCharsets.UTF_8));
                    } else if (line.equals("PING")) {
                        synchronized (output) {
                            write("PONG\r\n");
                            output.flush();
                        }
                    } else if (line.startsWith("-ERR") || line.startsWith("HMSG")) {
                        throw new IOException(line);
                    }
                }
            } catch (IOException error) {
                synchronized (this) {
                    broken = error.toString();
                    notifyAll();
                }
            }
        }

        /** An acknowledgement of an event or, with a count, of a batch; batches tell more besides. */
        private void answer(String body) throws IOException {
            if (body.contains("\"error\"") || body.contains("\"duplicate\"")) {
                throw new IOException(body);
            }
            if (!takesBatches || body.contains("\"count\"")) {
                synchronized (this) {
                    answered++;
                    if (answered == awaited) {
                        notifyAll();
                    }
                }
            }
        }

        private String readLine() throws IOException {
            StringBuilder line = new StringBuilder();
            for (int letter = input.readUnsignedByte();
                    letter != '\n';
                    letter = input.readUnsignedByte()) {
                if (letter != '\r') {
                    line.append((char) letter);
                }
            }
            return line.toString();
        }

        private void write(String text) throws IOException {
            output.write(text.getBytes(StandardCharsets.UTF_8));
        }
    }
}
