// An operator for Flotilla's ModelDeployment on controller-runtime, for benchmarks/reconcile.py; see README.md.
package main

import (
	"context"
	"flag"
	"fmt"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/log/zap"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"
)

// version is set by the linker.
var version = "unknown"

type options struct {
	healthAddress, metricsAddress, pprofAddress string
	namespace                                   string
	workers                                     int
}

func main() {
	var o options
	printVersion := flag.Bool("version", false, "Print the version and exit.")
	flag.StringVar(&o.healthAddress, "health-address", "127.0.0.1:8081", "Address of /healthz and /readyz.")
	flag.StringVar(&o.metricsAddress, "metrics-address", "127.0.0.1:8080", "Address of /metrics.")
	flag.StringVar(&o.pprofAddress, "pprof-address", "", "Address of /debug/pprof; empty: none.")
	flag.StringVar(&o.namespace, "namespace", "flotilla-system", "Namespace of the Lease.")
	flag.IntVar(&o.workers, "workers", 8, "ModelDeployments that are reconciled at the same time.")
	flag.Parse()
	if *printVersion {
		fmt.Println(version)
		return
	}
	ctrl.SetLogger(zap.New())
	if err := run(ctrl.SetupSignalHandler(), o); err != nil {
		ctrl.Log.Error(err, "the operator ends")
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	scheme := runtime.NewScheme()
	utilruntime.Must(clientgoscheme.AddToScheme(scheme))
	utilruntime.Must(addToScheme(scheme))

	config, err := ctrl.GetConfig()
	if err != nil {
		return err
	}
	// No client-side throttling: the apiserver's own priority and fairness decides.
	config.QPS = -1

	ours := cache.ByObject{Label: labels.SelectorFromSet(labels.Set{labelManagedBy: managedBy})}
	mgr, err := ctrl.NewManager(config, ctrl.Options{
		Scheme: scheme,
		Cache: cache.Options{
			ByObject: map[client.Object]cache.ByObject{
				&appsv1.Deployment{}:            ours,
				&corev1.Service{}:               ours,
				&policyv1.PodDisruptionBudget{}: ours,
				&corev1.Pod{}:                   ours,
			},
			DefaultTransform: cache.TransformStripManagedFields(),
		},
		Client: client.Options{Cache: &client.CacheOptions{
			// Else a pass that follows a write at once reads the object as it was before, and writes it again.
			EnableReadYourWritesConsistency: ptr.To(true),
		}},
		Metrics:                       server.Options{BindAddress: o.metricsAddress},
		HealthProbeBindAddress:        o.healthAddress,
		PprofBindAddress:              o.pprofAddress,
		LeaderElection:                true,
		LeaderElectionID:              "flotilla-operator",
		LeaderElectionNamespace:       o.namespace,
		LeaderElectionReleaseOnCancel: true,
		LeaseDuration:                 ptr.To(60 * time.Second),
		RenewDeadline:                 ptr.To(45 * time.Second),
		RetryPeriod:                   ptr.To(2 * time.Second),
	})
	if err != nil {
		return err
	}
	reconciler := &reconciler{Client: mgr.GetClient(), live: mgr.GetAPIReader()}
	if err := reconciler.setUp(ctx, mgr, o.workers); err != nil {
		return err
	}
	if err := mgr.AddHealthzCheck("ping", healthz.Ping); err != nil {
		return err
	}
	ready, err := readiness(mgr)
	if err != nil {
		return err
	}
	if err := mgr.AddReadyzCheck("synced", ready); err != nil {
		return err
	}
	return mgr.Start(ctx)
}

func watched() []client.Object {
	return []client.Object{
		&ModelDeployment{}, &appsv1.Deployment{}, &corev1.Service{}, &policyv1.PodDisruptionBudget{}, &corev1.Pod{},
	}
}

// readiness is true once this process leads and has listed everything.
func readiness(mgr ctrl.Manager) (healthz.Checker, error) {
	var synced atomic.Bool
	err := mgr.Add(manager.RunnableFunc(func(ctx context.Context) error {
		// The cache knows a kind only once somebody has asked for it, so WaitForCacheSync alone might wait for none.
		for _, kind := range watched() {
			if _, err := mgr.GetCache().GetInformer(ctx, kind); err != nil {
				return err
			}
		}
		synced.Store(true)
		<-ctx.Done()
		return nil
	}))
	return func(*http.Request) error {
		if synced.Load() {
			return nil
		}
		return fmt.Errorf("not the leader yet, or the first LISTs are not complete")
	}, err
}
