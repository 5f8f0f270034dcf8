package main

import (
	"strconv"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/intstr"
	appsv1ac "k8s.io/client-go/applyconfigurations/apps/v1"
	corev1ac "k8s.io/client-go/applyconfigurations/core/v1"
	metav1ac "k8s.io/client-go/applyconfigurations/meta/v1"
	policyv1ac "k8s.io/client-go/applyconfigurations/policy/v1"
)

const (
	labelManagedBy = "app.kubernetes.io/managed-by"
	labelModel     = "flotilla.dev/model"
	managedBy      = "flotilla"

	engineImage   = "vllm/vllm-openai:v0.33.0"
	engineVersion = "0.33.0"
	gpuResource   = "nvidia.com/gpu"
	enginePort    = 8000
	contextLength = 32768
)

func selectorLabels(md *ModelDeployment) map[string]string {
	return map[string]string{labelManagedBy: managedBy, labelModel: md.Name}
}

func childLabels(md *ModelDeployment) map[string]string {
	return map[string]string{
		"app.kubernetes.io/component": "engine",
		"app.kubernetes.io/name":      md.Spec.Engine.Name,
		"app.kubernetes.io/part-of":   "flotilla",
		labelManagedBy:                managedBy,
		labelModel:                    md.Name,
	}
}

func ownerReference(md *ModelDeployment) *metav1ac.OwnerReferenceApplyConfiguration {
	return metav1ac.OwnerReference().
		WithAPIVersion(groupVersion.String()).
		WithKind(modelDeploymentKind).
		WithName(md.Name).
		WithUID(md.UID).
		WithController(true).
		WithBlockOwnerDeletion(true)
}

func replicas(md *ModelDeployment) int32 { return max(md.Spec.Scaling.MinReplicas, 1) }

func deployment(md *ModelDeployment) *appsv1ac.DeploymentApplyConfiguration {
	return appsv1ac.Deployment(md.Name, md.Namespace).
		WithLabels(childLabels(md)).
		WithOwnerReferences(ownerReference(md)).
		WithSpec(appsv1ac.DeploymentSpec().
			WithReplicas(replicas(md)).
			WithSelector(metav1ac.LabelSelector().WithMatchLabels(selectorLabels(md))).
			WithStrategy(appsv1ac.DeploymentStrategy().
				WithType("RollingUpdate").
				WithRollingUpdate(appsv1ac.RollingUpdateDeployment().
					WithMaxSurge(intstr.FromInt32(0)).
					WithMaxUnavailable(intstr.FromInt32(1)))).
			WithProgressDeadlineSeconds(1200).
			WithRevisionHistoryLimit(3).
			WithTemplate(corev1ac.PodTemplateSpec().WithLabels(childLabels(md)).WithSpec(podSpec(md))))
}

func podSpec(md *ModelDeployment) *corev1ac.PodSpecApplyConfiguration {
	return corev1ac.PodSpec().
		WithAutomountServiceAccountToken(false).
		WithEnableServiceLinks(false).
		WithTerminationGracePeriodSeconds(70).
		WithSecurityContext(corev1ac.PodSecurityContext().
			WithRunAsNonRoot(true).WithRunAsUser(2000).WithRunAsGroup(2000).WithFSGroup(2000).
			WithSeccompProfile(corev1ac.SeccompProfile().WithType(corev1.SeccompProfileTypeRuntimeDefault))).
		WithAffinity(corev1ac.Affinity().WithNodeAffinity(corev1ac.NodeAffinity().
			WithRequiredDuringSchedulingIgnoredDuringExecution(corev1ac.NodeSelector().WithNodeSelectorTerms(
				labelIn("nvidia.com/gpu.product", "NVIDIA-L4"),
				labelIn("cloud.google.com/gke-accelerator", md.Spec.Accelerator.Class),
				labelIn("node.kubernetes.io/instance-type", "g6.xlarge", "g6.2xlarge", "g6.4xlarge", "g6.8xlarge",
					"g6.12xlarge", "g6.16xlarge", "g6.24xlarge", "g6.48xlarge"),
				labelIn("karpenter.k8s.aws/instance-gpu-name", "l4"))))).
		WithTolerations(corev1ac.Toleration().
			WithKey(gpuResource).WithOperator(corev1.TolerationOpExists).WithEffect(corev1.TaintEffectNoSchedule)).
		WithTopologySpreadConstraints(
			spread(md, "topology.kubernetes.io/zone"), spread(md, "kubernetes.io/hostname")).
		WithVolumes(
			corev1ac.Volume().WithName("cache").WithEmptyDir(corev1ac.EmptyDirVolumeSource()),
			corev1ac.Volume().WithName("tmp").WithEmptyDir(corev1ac.EmptyDirVolumeSource()),
			corev1ac.Volume().WithName("shm").WithEmptyDir(corev1ac.EmptyDirVolumeSource().
				WithMedium(corev1.StorageMediumMemory).WithSizeLimit(resource.MustParse("2Gi")))).
		WithContainers(engine(md))
}

func labelIn(key string, values ...string) *corev1ac.NodeSelectorTermApplyConfiguration {
	return corev1ac.NodeSelectorTerm().WithMatchExpressions(corev1ac.NodeSelectorRequirement().
		WithKey(key).WithOperator(corev1.NodeSelectorOpIn).WithValues(values...))
}

func spread(md *ModelDeployment, key string) *corev1ac.TopologySpreadConstraintApplyConfiguration {
	return corev1ac.TopologySpreadConstraint().
		WithMaxSkew(1).
		WithTopologyKey(key).
		WithWhenUnsatisfiable(corev1.ScheduleAnyway).
		WithLabelSelector(metav1ac.LabelSelector().WithMatchLabels(selectorLabels(md))).
		WithMatchLabelKeys("pod-template-hash")
}

func engine(md *ModelDeployment) *corev1ac.ContainerApplyConfiguration {
	gpu := resource.MustParse("1")
	memory := resource.MustParse("16Gi")
	return corev1ac.Container().
		WithName("engine").
		WithImage(engineImage).
		WithArgs(md.Spec.Model.Source[len("hf://"):], "--host", "0.0.0.0", "--port", strconv.Itoa(enginePort),
			"--served-model-name", md.Name, "--tensor-parallel-size", "1", "--gpu-memory-utilization", "0.92",
			"--quantization", "fp8", "--max-model-len", strconv.Itoa(contextLength), "--shutdown-timeout", "45",
			"--disable-access-log-for-endpoints", "/health,/metrics,/ping").
		WithEnv(env("HF_HOME", "/cache/huggingface"), env("HOME", "/cache/home"),
			env("TORCHINDUCTOR_CACHE_DIR", "/cache/inductor"), env("TRITON_CACHE_DIR", "/cache/triton"),
			env("VLLM_CACHE_ROOT", "/cache/vllm"), env("VLLM_CONFIG_ROOT", "/cache/vllm-config"),
			env("VLLM_ENGINE_READY_TIMEOUT_S", "600"), env("VLLM_NO_USAGE_STATS", "1"),
			env("XDG_CACHE_HOME", "/cache/xdg")).
		WithPorts(corev1ac.ContainerPort().WithName("http").WithContainerPort(enginePort).WithProtocol(corev1.ProtocolTCP)).
		WithResources(corev1ac.ResourceRequirements().
			WithRequests(corev1.ResourceList{"cpu": resource.MustParse("4"), "memory": memory, gpuResource: gpu}).
			WithLimits(corev1.ResourceList{"memory": memory, gpuResource: gpu})).
		WithVolumeMounts(
			corev1ac.VolumeMount().WithName("cache").WithMountPath("/cache"),
			corev1ac.VolumeMount().WithName("tmp").WithMountPath("/tmp"),
			corev1ac.VolumeMount().WithName("shm").WithMountPath("/dev/shm")).
		WithStartupProbe(healthy().WithPeriodSeconds(2).WithTimeoutSeconds(5).WithFailureThreshold(300)).
		WithReadinessProbe(healthy().WithPeriodSeconds(5).WithTimeoutSeconds(5).WithFailureThreshold(3)).
		WithLivenessProbe(healthy().WithPeriodSeconds(10).WithTimeoutSeconds(10).WithFailureThreshold(6)).
		WithLifecycle(corev1ac.Lifecycle().WithPreStop(
			corev1ac.LifecycleHandler().WithSleep(corev1ac.SleepAction().WithSeconds(10)))).
		WithTerminationMessagePolicy(corev1.TerminationMessageFallbackToLogsOnError).
		WithSecurityContext(corev1ac.SecurityContext().
			WithAllowPrivilegeEscalation(false).
			WithReadOnlyRootFilesystem(true).
			WithCapabilities(corev1ac.Capabilities().WithDrop("ALL")))
}

func env(name, value string) *corev1ac.EnvVarApplyConfiguration {
	return corev1ac.EnvVar().WithName(name).WithValue(value)
}

func healthy() *corev1ac.ProbeApplyConfiguration {
	// The default is said too: comparing with the live object takes a zero for a wish.
	return corev1ac.Probe().
		WithSuccessThreshold(1).
		WithHTTPGet(corev1ac.HTTPGetAction().WithPath("/health").WithPort(intstr.FromString("http")))
}

func service(md *ModelDeployment) *corev1ac.ServiceApplyConfiguration {
	return corev1ac.Service(md.Name, md.Namespace).
		WithLabels(childLabels(md)).
		WithOwnerReferences(ownerReference(md)).
		WithSpec(corev1ac.ServiceSpec().
			WithType(corev1.ServiceTypeClusterIP).
			WithSelector(selectorLabels(md)).
			WithPorts(corev1ac.ServicePort().
				WithName("http").WithPort(enginePort).WithProtocol(corev1.ProtocolTCP).
				WithTargetPort(intstr.FromString("http"))))
}

func disruptionBudget(md *ModelDeployment) *policyv1ac.PodDisruptionBudgetApplyConfiguration {
	return policyv1ac.PodDisruptionBudget(md.Name, md.Namespace).
		WithLabels(childLabels(md)).
		WithOwnerReferences(ownerReference(md)).
		WithSpec(policyv1ac.PodDisruptionBudgetSpec().
			WithMaxUnavailable(intstr.FromInt32(1)).
			WithSelector(metav1ac.LabelSelector().WithMatchLabels(selectorLabels(md))).
			WithUnhealthyPodEvictionPolicy(policyv1.AlwaysAllow))
}
