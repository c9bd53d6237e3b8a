package io.tallyboard;

import com.google.gson.Gson;
import com.google.gson.reflect.TypeToken;
import java.io.IOException;
import java.io.InputStream;
import java.io.InputStreamReader;
import java.io.Reader;
import java.io.UncheckedIOException;
import java.math.BigDecimal;
import java.nio.charset.StandardCharsets;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;

/**
 * The published service config: deadlines, waiting for a connection, and retries.
 *
 * <p>gRPC gets it without the deadlines, for it would cut a caller's longer one to them.
 */
final class ServiceConfig {
  private static final String RESOURCE = "service_config.json";
  private static final BigDecimal NANOS_PER_SECOND = BigDecimal.valueOf(1_000_000_000);

  private final Map<String, Object> config;
  private final Map<String, Optional<Long>> limits = new HashMap<>();

  private ServiceConfig(Map<String, Object> config) {
    this.config = config;
    for (Map<String, Object> methods : maps(config.get("methodConfig"))) {
      Object timeout = methods.remove("timeout");
      Optional<Long> limit = Optional.ofNullable(timeout).map(ServiceConfig::nanos);
      for (Map<String, Object> name : maps(methods.get("name"))) {
        limits.put(name.get("service") + "/" + name.getOrDefault("method", ""), limit);
      }
    }
  }

  static ServiceConfig load() {
    InputStream resource = ServiceConfig.class.getResourceAsStream(RESOURCE);
    if (resource == null) {
      throw new IllegalStateException(RESOURCE + " is missing beside the classes");
    }
    try (Reader reader = new InputStreamReader(resource, StandardCharsets.UTF_8)) {
      return new ServiceConfig(
          new Gson().fromJson(reader, new TypeToken<Map<String, Object>>() {}.getType()));
    } catch (IOException error) {
      throw new UncheckedIOException(error);
    }
  }

  /** Without deadlines, as gRPC wants it: maps, lists, strings, booleans, every number a Double. */
  Map<String, ?> withoutDeadlines() {
    return config;
  }

  /**
   * How long a call may take whose caller says nothing.
   *
   * @param method the full name, {@code tallyboard.v1.CounterService/Increment} for example
   * @return nanoseconds, or empty for no limit
   */
  Optional<Long> limit(String method) {
    // What the config says of a method hides what it says of the service.
    Optional<Long> own = limits.get(method);
    String service = method.substring(0, method.indexOf('/') + 1);
    return own != null ? own : limits.getOrDefault(service, Optional.empty());
  }

  // The config is ours, and so is its shape.
  @SuppressWarnings("unchecked")
  private static List<Map<String, Object>> maps(Object list) {
    return (List<Map<String, Object>>) list;
  }

  private static long nanos(Object duration) {
    String seconds = duration.toString().replace("s", "");
    return new BigDecimal(seconds).multiply(NANOS_PER_SECOND).longValueExact();
  }
}
