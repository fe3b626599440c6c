// Publish one request with Kafka's own Java client, and read its answer from the responses topic.
//   java -Dorg.slf4j.simpleLogger.defaultLogLevel=warn -cp 'LIBS/*' docs/producers/Producer.java HOST:PORT docs/producers/request.json [PREFIX]
// LIBS: a folder with kafka-clients and its dependencies.
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.List;
import java.util.Map;
import java.util.UUID;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;
import org.apache.kafka.common.serialization.StringDeserializer;
import org.apache.kafka.common.serialization.StringSerializer;

class Producer {
    public static void main(String[] arguments) throws Exception {
        String kafka = arguments[0];
        byte[] body = Files.readAllBytes(Path.of(arguments[1]));
        String prefix = arguments.length > 2 ? arguments[2] : "headrace";
        String id = UUID.randomUUID().toString();
        Map<String, Object> producing = Map.of("bootstrap.servers", kafka, "acks", "all", "enable.idempotence", true);
        Map<String, Object> consuming = Map.of("bootstrap.servers", kafka, "enable.auto.commit", false);
        try (var consumer = new KafkaConsumer<>(consuming, new StringDeserializer(), new ByteArrayDeserializer());
                var producer = new KafkaProducer<>(producing, new StringSerializer(), new ByteArraySerializer())) {
            // An answer is on the partition of {p}.responses that has the number of the request's own: choose it, and read only there, from now on.
            int partition = Math.floorMod(id.hashCode(), producer.partitionsFor(prefix + ".requests").size());
            var responses = new TopicPartition(prefix + ".responses", partition);
            consumer.assign(List.of(responses));
            consumer.seekToEnd(List.of(responses));
            consumer.position(responses);
            var record = new ProducerRecord<>(prefix + ".requests", partition, id, body);
            // With these three in headers the request is routed without its body being decoded; headers win over fields of the body.
            header(record, "endpoint", "fashion");
            header(record, "min_accuracy", "0.9");
            header(record, "timeout_ms", "300");
            producer.send(record).get();
            String answer = firstAnswer(consumer, id);
            System.out.println(answer == null ? "no answer for " + id : answer);
        }
    }

    private static void header(ProducerRecord<String, byte[]> record, String name, String value) {
        record.headers().add(name, value.getBytes(StandardCharsets.UTF_8));
    }

    /** The first record of a key is the answer; later ones do not count. */
    private static String firstAnswer(KafkaConsumer<String, byte[]> consumer, String id) {
        long giveUp = System.nanoTime() + Duration.ofSeconds(5).toNanos();
        while (System.nanoTime() < giveUp) {
            for (ConsumerRecord<String, byte[]> found : consumer.poll(Duration.ofMillis(100))) {
                if (id.equals(found.key())) {
                    return new String(found.value(), StandardCharsets.UTF_8);
                }
            }
        }
        return null;
    }
}
